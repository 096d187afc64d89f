"""Foreign text on its way to a terminal: no control characters, no secrets of URLs.

Text of documents, models, recipes and file names may hold escape sequences, which set the clipboard or the title, move
the cursor and overwrite what was printed. `guarded_output` is the one place that stops them, for everything a command
prints; rich's own styling passes through `configs/common/console.py`.
"""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from configs.safety.hide_secrets import mask_urls

# C0, DEL and C1 but for line ends and tabs; lone surrogates, which no stream can encode.
_SHOWN = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for code in (*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000))
    if chr(code) not in "\n\t"
}


def printable(text: str) -> str:
    r"""The text with control characters written out: ESC becomes `\x1b`. Line ends (LF) and tabs stay."""
    return text.translate(_SHOWN)


class _Guarded:
    """A text stream that writes `printable` text, and URLs without their secrets where `masks`."""

    def __init__(self, stream: Any, masks: bool) -> None:
        self.stream, self._masks = stream, masks

    def write(self, text: str) -> int:
        self.stream.write(printable(mask_urls(text) if self._masks else text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "stream":  # not yet set, as in a copy
            raise AttributeError(name)
        return getattr(self.stream, name)


def unguarded(stream: Any) -> Any:
    """The stream below `guarded_output`, for those who write control sequences of their own."""
    while isinstance(stream, _Guarded):
        stream = stream.stream
    return stream


@contextmanager
def encodable_output() -> Iterator[None]:
    """Characters that the encoding of standard output or standard error lacks become `?`; nothing ends for them.

    Streams in UTF-8 have them all, and stay as they are.
    """
    changed = []
    for stream in (unguarded(sys.stdout), unguarded(sys.stderr)):
        strict = getattr(stream, "errors", None) in ("strict", "surrogateescape")
        if strict and hasattr(stream, "reconfigure") and _codec(stream.encoding) != "utf-8":
            changed.append((stream, stream.errors))
            stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream, errors in changed:
            if not stream.closed:
                stream.reconfigure(errors=errors)


def _codec(name: str) -> str:
    try:
        return codecs.lookup(name).name
    except LookupError:
        return name


@contextmanager
def guarded_output() -> Iterator[None]:
    """Whatever is printed inside reaches standard output and standard error as `printable` text.

    Messages (standard error) also lose the user information and queries of URLs; standard output is data, which keeps
    them.
    """
    before = sys.stdout, sys.stderr
    sys.stdout = cast(Any, _Guarded(unguarded(sys.stdout), masks=False))
    sys.stderr = cast(Any, _Guarded(unguarded(sys.stderr), masks=True))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before

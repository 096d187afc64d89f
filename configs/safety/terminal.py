"""Removes control characters and URL secrets from text before it reaches a terminal.

Text of documents, models, recipes and file names may contain escape sequences. These set the clipboard or the window
title, move the cursor, and overwrite earlier output. `guarded_output` escapes them in everything that a command prints.
The styling of rich passes through `configs/common/console.py`.
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
    r"""Escapes control characters: ESC becomes `\x1b`. Line ends (LF) and tabs stay."""
    return text.translate(_SHOWN)


class _Guarded:
    """Wraps a text stream; writes `printable` text and, with `masks`, URLs without their secrets."""

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
    """Returns the stream below `guarded_output`, for code that writes control sequences itself."""
    while isinstance(stream, _Guarded):
        stream = stream.stream
    return stream


@contextmanager
def encodable_output() -> Iterator[None]:
    """Prints `?` for characters that the encoding of standard output or standard error lacks, instead of failing.

    UTF-8 streams encode every character and are left unchanged.
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
    """Makes everything printed in the body `printable`.

    On standard error, user information and queries of URLs are masked as well. Standard output is data and keeps them.
    """
    before = sys.stdout, sys.stderr
    sys.stdout = cast(Any, _Guarded(unguarded(sys.stdout), masks=False))
    sys.stderr = cast(Any, _Guarded(unguarded(sys.stderr), masks=True))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before

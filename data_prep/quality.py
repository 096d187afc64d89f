"""Documents that are not text at all. A judgement is a reason to drop, or None to keep."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable
from functools import cache

from configs.schema import Quality

_CONTROL_BYTES = bytes([*range(9), 11, 12, *range(14, 32), 127])


def reason_to_drop(text: str, encoded: bytes, settings: Quality) -> str | None:
    """`empty`, `too_short`, `not_text` or None.

    Args:
        text: normalised text.
        encoded: the same as UTF-8.
        settings: `data.quality`.
    """
    if not text or text.isspace():
        return "empty"
    if len(text) < settings.min_characters:
        return "too_short"
    if unprintable(text, encoded) > settings.max_unprintable_fraction * len(text):
        return "not_text"
    return None


def unprintable(text: str, encoded: bytes) -> int:
    """Number of control, replacement, private-use and unassigned characters; tab and line ends are none of them."""
    count = len(encoded) - len(encoded.translate(None, _CONTROL_BYTES))
    if not text.isascii():
        count += sum(map(len, _unprintable_runs().findall(text)))
    return count


@cache
def _unprintable_runs() -> re.Pattern[str]:
    return re.compile(f"[{character_class(_is_unprintable, 0x80)}]+")


def _is_unprintable(character: str) -> bool:
    return character == "\ufffd" or unicodedata.category(character) in {"Cc", "Cn", "Co"}


def character_class(member: Callable[[str], bool], first: int = 0) -> str:
    """The inside of a regular expression's `[…]` with all characters from `first` on for which `member` is true."""
    ranges: list[list[int]] = []
    for code in range(first, sys.maxunicode + 1):
        if 0xD800 <= code < 0xE000 or not member(chr(code)):
            continue
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in ranges)

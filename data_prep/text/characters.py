"""Unicode character classes for regular expressions of `re`.

`re` finds a character up to U+FFFF in a class by one look-up, and tests those beyond range by range, which is slow:
such classes stand behind a cheap test for being beyond, or in a pattern for texts that have any.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

BEYOND = "\U00010000-\U0010ffff"
HAS_BEYOND = re.compile(f"[{BEYOND}]")
# Unicode assigns nothing between this and a few tags and selectors at U+E0000, and nothing but private use after those.
LAST_SCRIPT = 0x3FFFF
TAGS = (0xE0000, 0xE1000)
UNUSED = f"{chr(LAST_SCRIPT + 1)}-{chr(TAGS[0] - 1)}{chr(TAGS[1])}-\U0010ffff"


def ranges(characters: Iterable[str]) -> str:
    """The inside of a `[…]` with these characters, which are sorted."""
    found: list[list[int]] = []
    for code in map(ord, characters):
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in found)


def characters(start: int, stop: int) -> str:
    """All characters from `start` up to `stop`, surrogates left out."""
    return "".join([chr(code) for code in range(start, stop) if not 0xD800 <= code < 0xE000])


def runs_unprintable() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Runs of control, replacement, private-use and unassigned characters beyond ASCII.

    Returns:
        A pattern for texts with nothing beyond U+FFFF, and one for all texts.
    """
    low = ranges(filter(_unprintable, characters(0x80, 0x10000)))
    high = ranges(filter(_unprintable, characters(0x10000, LAST_SCRIPT + 1) + characters(*TAGS)))
    return re.compile(f"[{low}]+"), re.compile(f"(?:[{low}]|(?=[{BEYOND}])[{high}{UNUSED}])+")


def _unprintable(character: str) -> bool:
    return character == "\ufffd" or unicodedata.category(character) in {"Cc", "Cn", "Co"}

"""Finds documents that are not text. Returns a reason to drop, or None to keep."""

from __future__ import annotations

from functools import cache

from configs.schema.data import Quality
from data_prep.text.characters import HAS_BEYOND, runs_unprintable

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
        count += sum(map(len, _unprintable_runs()[HAS_BEYOND.search(text) is not None].findall(text)))
    return count


_unprintable_runs = cache(runs_unprintable)

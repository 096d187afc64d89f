"""Rewards the form of an answer: exactly one `####`, in the last line."""

from __future__ import annotations

from pretrain.rewards.answers import EMPTY, MARKER, NO_MARKER, SEVERAL, Reward

MISPLACED = "not_in_last_line"


def check_format(text: str) -> Reward:
    """Gives 1 for exactly one `####` that stands in the last line and has something after it, else 0."""
    found = MARKER.findall(text)
    if len(found) != 1:
        return Reward(0.0, None, (SEVERAL,) if found else (NO_MARKER,))
    if not found[0].strip():
        return Reward(0.0, found[0], (EMPTY,))
    last = text.rstrip().splitlines()[-1]
    if not MARKER.search(last):
        return Reward(0.0, found[0], (MISPLACED,))
    return Reward(1.0, found[0])

"""Rewards short answers."""

from __future__ import annotations

from pretrain.rewards.answers import Reward


def check_length(tokens: int, longest: int) -> Reward:
    """Gives 1 for an empty answer and 0 for one of `longest` tokens or more, linear between."""
    return Reward(max(0.0, 1.0 - tokens / longest))

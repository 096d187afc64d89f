"""Finds slow ranks by their forward passes: whole steps take equally long, because fast ranks wait for slow ones."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from configs.common.notices import say

if TYPE_CHECKING:
    from pretrain.engine.engine import Engine


def slow_ranks(seconds: list[float], ratio: float) -> dict[int, float]:
    """Rank -> its time over the median, where that exceeds `ratio`; of two ranks the faster is the median."""
    median = sorted(seconds)[(len(seconds) - 1) // 2]
    return {rank: value / median for rank, value in enumerate(seconds) if value > ratio * median > 0}


def report_slow_ranks(engine: Engine, step: int, ratio: float) -> None:
    """Says which ranks compute slowly, since the last call; every rank must call it."""
    if engine.ranks.count == 1:
        return
    found = engine.gather((engine.clock.median(), socket.gethostname()))
    for rank, times in slow_ranks([seconds for seconds, _ in found], ratio).items():
        if engine.is_main:
            say(
                f"step {step:,}: rank {rank} ({found[rank][1]}) is slow: {times:.1f} times the median of all ranks, "
                f"{found[rank][0]:.3g} s for a forward pass"
            )

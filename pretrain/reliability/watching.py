"""Puts heartbeat, slices and the end by a lost rank around a training session."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

import torch.distributed as dist

from configs.schema.recipe import Recipe
from pretrain.engine.engine import Engine
from pretrain.phases import CurrentPhase, Phase
from pretrain.reliability.rank_heartbeat import Heartbeat, read_beats
from pretrain.reliability.slices import Slices

# What torch says when a peer is gone or late comes as a plain RuntimeError from gloo.
_LOST = re.compile(r"gloo|nccl|timed out|connection (closed|reset|refused)|broken pipe|process ?group", re.IGNORECASE)


def watched(recipe: Recipe, engine: Engine, phases: CurrentPhase, start: int, work: Callable[[int], int]) -> int:
    """Does `work(every)` from the checkpoint of step `start` on, and returns the signal's number that it returns.

    `every` is how many steps to put between checkpoints; the engine reports to `phases`. When a collective fails
    or a rank is stuck, this does not return: the process ends with `LOST_RANK`.
    """
    run, ranks = recipe.run_directory, engine.ranks
    seen = read_beats(run).get(0)
    slices = Slices(run) if engine.is_main else None
    every = recipe.train.checkpoint.every
    if slices is not None:
        every = slices.begin(start, every, seen.step - 1 if seen else None)
    every = engine.gather(every)[0]
    phases.enter(Phase.BETWEEN_STEPS, 0)  # the time that the engine took to start is no rank that is stuck
    heartbeat = Heartbeat(run, recipe.train.watch, ranks.rank, ranks.count, phases)

    def finish(how: str) -> None:
        if slices is not None:
            slices.finish(phases.now.step, how)

    with heartbeat.watching():
        try:
            number = work(every)
        except Exception as error:
            if ranks.count > 1 and isinstance(error, RuntimeError) and _lost(error):
                finish("a rank was lost")
                heartbeat.lost(str(error))
            finish(f"error: {error}")
            raise
        finish(signal.Signals(number).name if number else "done")
    return number


def _lost(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or _LOST.search(str(error)) is not None

"""Runs training under a heartbeat and a record of launches, and ends the process when another rank is lost."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

import torch.distributed as dist

from configs.common.notices import say
from configs.schema.recipe import Recipe
from pretrain.engine.engine import Engine
from pretrain.phases import CurrentPhase, Phase
from pretrain.reliability.launches import Launches
from pretrain.reliability.rank_heartbeat import RankHeartbeat, read_beats

# gloo reports a peer that is gone or late as a plain RuntimeError, so its text must tell.
_LOST = re.compile(r"gloo|nccl|timed out|connection (closed|reset|refused)|broken pipe|process ?group", re.IGNORECASE)


def watched(recipe: Recipe, engine: Engine, phases: CurrentPhase, start: int, work: Callable[[int], int]) -> int:
    """Calls `work(every)` from the checkpoint of step `start` on; returns the number of a signal, or 0.

    When a collective fails or a rank is stuck, this does not return: the process ends with `LOST_RANK`.

    Args:
        recipe: of the run.
        engine: whose ranks are watched.
        phases: where the engine reports its phases.
        start: step of the checkpoint that training goes on from.
        work: trains with a checkpoint every so many steps, and returns the number of a signal, or 0.
    """
    run, ranks = recipe.run_directory, engine.ranks
    seen = read_beats(run).get(0)
    launches = Launches(run) if engine.is_main else None
    every = recipe.train.checkpoint.every
    if launches is not None:
        every = launches.begin(start, every, seen.step - 1 if seen else None)
    every = engine.gather(every)[0]
    phases.enter(Phase.BETWEEN_STEPS, 0)  # the time that the engine took to start is no rank that is stuck
    heartbeat = RankHeartbeat(run, recipe.train.watch, ranks.rank, ranks.count, phases)

    def finish(how: str) -> None:
        if launches is not None:
            launches.finish(phases.now.step, how)

    with heartbeat.watching():
        try:
            number = work(every)
        except Exception as error:
            if ranks.count > 1 and (sign := sign_of_a_lost_rank(error)):
                finish("a rank was lost")
                say(f"rank {ranks.rank}: taken for a lost rank by {sign}")
                heartbeat.lost(str(error))
            finish(f"error: {error}")
            raise
        finish(signal.Signals(number).name if number else "done")
    return number


def sign_of_a_lost_rank(error: Exception) -> str | None:
    """Tells by what an error is known as another rank's end: its type or some words; None: it is this rank's own.

    A RuntimeError of this rank may hold such words by chance; the log then names them.
    """
    if isinstance(error, dist.DistError):
        return f"its type, {type(error).__name__}"
    if isinstance(error, RuntimeError) and (match := _LOST.search(str(error))):
        return f"the words {match[0]!r} in its text"
    return None

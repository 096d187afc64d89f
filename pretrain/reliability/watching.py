"""Runs training under a heartbeat and a record of launches, and ends the process when another rank is lost."""

from __future__ import annotations

import signal
from collections.abc import Callable

from configs.common.notices import say
from configs.schema.recipe import Recipe
from pretrain.engine.engine import Engine
from pretrain.phases import CurrentPhase, Phase
from pretrain.reliability.launches import Launches
from pretrain.reliability.lost_rank import sign_of_a_lost_rank
from pretrain.reliability.rank_heartbeat import RankHeartbeat, read_beats


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

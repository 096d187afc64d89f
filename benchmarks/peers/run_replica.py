"""Our own training, as `python pretrain/train.py` does it: `python run_replica.py JOB.json`."""

from __future__ import annotations

import sys
from typing import Any

from clock import Clock
from job import Job

from pretrain.engine import engine
from pretrain.train import main as train


def main() -> int:
    """Trains the job's recipe; the clock is told by `Engine.step`."""
    job = Job.load()
    found: list[Any] = []
    clock = Clock(job, lambda: found[0].module.model, lambda module, tokens: module(tokens))
    step = engine.Engine.step

    def timed(self: engine.Engine, *arguments: Any, **named: Any) -> engine.StepResult:
        result = step(self, *arguments, **named)
        found[:] = [self]
        clock.stepped()
        return result

    engine.Engine.step = timed
    return train(["--recipe", job.recipe, *job.overrides])


if __name__ == "__main__":
    sys.exit(main())

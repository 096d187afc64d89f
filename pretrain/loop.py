"""Repeats the training step: next batch, step, log, compare, validate, save.

This file knows no objective, no file format and no DeepSpeed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from configs.common.progress import progress_bar
from configs.schema.train import Train
from configs.schema.validation import more_is_better
from pretrain.batches.source import Batches, prefetched
from pretrain.checkpoint.manifest import MEASURED, OBJECTIVE_STATE, VALIDATION_LOSS
from pretrain.checkpoint.saver import Saver
from pretrain.engine.engine import Engine, StepResult
from pretrain.engine.non_finite import NonFiniteLoss
from pretrain.garbage import collected_at_steps
from pretrain.metrics.evaluated import Evaluator, undisturbed
from pretrain.metrics.meter import Meter, Tracker
from pretrain.objectives.objective import Objective, Validate
from pretrain.optimizer.schedule import learning_rate
from pretrain.phases import Phase
from pretrain.reliability.loss_guard import LossGuard, check_validation
from pretrain.reliability.silent_corruption import compare_replicas
from pretrain.reliability.slow_ranks import report_slow_ranks
from pretrain.signals import stop_requests


@dataclass(frozen=True)
class TrainingRun:
    """All that the loop works with, from one checkpoint to the end, a signal or a rewind."""

    engine: Engine
    objective: Objective
    batches: Batches[Any]  # this rank's tokens of this rank's rows
    train: Train
    steps: range  # updates to make, counted from 0; `stop` is the length of the whole run
    meter: Meter
    tracker: Tracker
    guard: LossGuard
    validator: Validate
    saver: Saver
    facts: dict[str, Any]  # what every checkpoint of this run keeps and no step changes
    evaluator: Evaluator | None = None

    def is_due(self, done: int, every: int) -> bool:
        """Whether something is to be done after `done` updates; it always is after the last one."""
        return done % every == 0 or done == self.steps.stop

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside weights and moments."""
        return {
            "meter": self.meter.state,
            "updates": self.engine.state.updates(),
            "loss_scale": self.engine.state.loss_scale(),
            "faults": self.guard.state,
            OBJECTIVE_STATE: self.objective.state,
            VALIDATION_LOSS: self.meter.validation_loss,
            MEASURED: {curve: list(found) for curve, found in self.meter.measured.items()},
            **self.facts,
        }


@dataclass(frozen=True)
class Stepped:
    """An update was made."""

    result: StepResult
    learning_rate: float

    @property
    def stop(self) -> int:
        """The number of the signal that ends training after this step, or 0."""
        return self.result.stop


@dataclass(frozen=True)
class NoUpdate:
    """No update was made: the lineage skips the step, or its loss was refused."""

    stop: int = 0


def fit(run: TrainingRun) -> int:
    """Makes the updates `run.steps`.

    Returns:
        0, or the number of the signal that ended training early on some rank: training went on to the objective's next
        boundary, which is mostly the end of the step, and was saved; the same call continues.

    Raises:
        NonFiniteLoss, LossSpike, Rewind: before the update, on all ranks; see `LossGuard`.
        ValueError: the validation loss is not finite; the step is not saved.
        SilentCorruption: ranks differ in what they should hold in common.
        NothingToLearn: the objective sees no use in going on.
    """
    steps = run.steps
    with (
        stop_requests() as stop,
        collected_at_steps() as collect,
        _read_ahead(run) as ahead,
        progress_bar("training", steps.stop, enabled=run.engine.is_main) as bar,
    ):
        ending, owed = 0, False  # the signal that was given; whether a checkpoint waits for the objective's boundary
        for step in steps:
            done = step + 1
            outcome = _train_step(run, step, ahead, stop)
            run.saver.poll()  # raises what went wrong with a save that has ended since
            collect(done)
            if isinstance(outcome, Stepped):
                if run.is_due(done, run.train.log_every):
                    run.tracker.log(done, run.meter.measure(outcome.result, outcome.learning_rate))
                bar.update(done, run.meter.note(outcome.result))
            ending = ending or outcome.stop
            owed = owed or bool(ending) or run.is_due(done, run.train.checkpoint.every)
            saves = owed and (run.objective.boundary(done) or done == steps.stop)
            _after_step(run, done, saves, bool(ending), stop)
            owed = owed and not saves
            if ending and saves and done < steps.stop:
                return ending
    return 0


def _read_ahead(run: TrainingRun) -> AbstractContextManager[Iterator[Any]]:
    """What all steps read that make an update."""
    rows, lineage = run.engine.rows, run.guard.lineage
    steps: Sequence[int] = [step for step in run.steps if step not in lineage] if lineage.all else run.steps
    return prefetched(run.batches, steps, rows.rank, rows.count, run.engine.device)


def _train_step(run: TrainingRun, step: int, ahead: Iterator[Any], stop: Callable[[], int]) -> Stepped | NoUpdate:
    """Makes the update of `step` (from 0), unless the lineage or the guard skips it."""
    if step in run.guard.lineage:
        return NoUpdate()
    rate = learning_rate(run.train.schedule, run.train.optimizer.lr, step, run.steps.stop)
    run.engine.report_phase(Phase.WAITING_FOR_DATA, step + 1)
    began = time.monotonic()
    read = next(ahead)
    waited = time.monotonic() - began
    if run.objective.rolls_out:
        run.engine.report_phase(Phase.ROLLOUT)
    batch = run.objective.experience(run.engine, read, step)
    try:
        result = run.engine.step(batch, step, rate, stop(), partial(_accepts, run, step))
    except NonFiniteLoss as error:
        run.guard.handle_non_finite(step, error)
        return NoUpdate()
    if not result.applied:
        return NoUpdate(result.stop)
    run.meter.add(result, batch.fresh, waited)
    return Stepped(result, rate)


def _accepts(run: TrainingRun, step: int, loss: float, statistics: dict[str, float]) -> bool:
    """Whether the update of `step` is made; all ranks decide the same."""
    run.objective.check(step, loss, statistics)
    return run.guard.decide(step, loss, statistics)


def _after_step(run: TrainingRun, done: int, saves: bool, ends: bool, stop: Callable[[], int]) -> None:
    """Compares ranks, validates and saves after `done` updates, where it is due; training's clock stands meanwhile."""
    engine, train = run.engine, run.train
    with run.meter.paused():
        # Before each save as well: a checkpoint must not keep what a broken device computed.
        if train.watch.compare_every and (saves or run.is_due(done, train.watch.compare_every)):
            compare_replicas(engine, done)
            report_slow_ranks(engine, done, train.watch.slow_ratio)
        if run.is_due(done, train.validation.every):
            engine.report_phase(Phase.VALIDATION, done)
            values = run.validator(engine)
            run.meter.note_measured(values, more_is_better)
            run.tracker.log(done, values)
            check_validation(done, values)
        if run.evaluator is not None and run.is_due(done, train.validation.evaluation_every):
            _evaluate(run, run.evaluator, done, stop)
        if saves:
            engine.report_phase(Phase.SAVING, done)
            run.saver.save(done, run.state(), last=ends or done == run.steps.stop)
            run.guard.saved(done)
        engine.report_phase(Phase.BETWEEN_STEPS, done)


def _evaluate(run: TrainingRun, evaluator: Evaluator, done: int, stop: Callable[[], int]) -> None:
    """Scores parts of the evaluation after `done` updates."""
    run.engine.report_phase(Phase.EVALUATION, done)
    with undisturbed(run.engine):
        found = evaluator(run.engine, done, stop)
    run.meter.note_measured(found.values, found.more_is_better.get)
    run.tracker.log(done, dict(found.values))
    run.tracker.show(done, found.texts)

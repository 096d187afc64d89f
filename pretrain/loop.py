"""The training loop: next batch, step, log, validate, save. It knows no objective, no file and no DeepSpeed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from configs.common.progress import progress_bar
from configs.schema.train import Train
from pretrain.batches.source import Batches, prefetched
from pretrain.engine.engine import Engine, StepResult
from pretrain.engine.non_finite import NonFiniteLoss
from pretrain.garbage import collected_at_steps
from pretrain.metrics.meter import Meter, Tracker
from pretrain.optimizer.schedule import learning_rate
from pretrain.parallel.rows import SlicedBatches
from pretrain.phases import Phase
from pretrain.reliability.loss_guard import FaultGuard, check_validation
from pretrain.reliability.silent_corruption import compare_replicas
from pretrain.reliability.slow_ranks import report_slow_ranks
from pretrain.signals import stop_requests


def fit(
    engine: Engine,
    batches: Batches,
    train: Train,
    steps: range,
    meter: Meter,
    tracker: Tracker,
    guard: FaultGuard,
    validate: Callable[[], dict[str, float]],
    save: Callable[[int, bool], None],
    poll: Callable[[], None] = lambda: None,
) -> int:
    """Makes the updates `steps` (counted from 0; `steps.stop` is the length of the whole run).

    `save(done, last)` gets the updates made and whether training ends here; `poll()` is called once a step and raises
    what went wrong behind it.

    Returns 0, or the number of the signal that ended it early on some rank: the step was finished and saved, and the
    same call continues.

    Raises:
        NonFiniteLoss, LossSpike, Rewind: before the update, on all ranks; see `FaultGuard`.
        ValueError: the validation loss is not finite; the step is not saved.
        SilentCorruption: ranks differ in what they should hold in common.
    """
    rows = engine.rows
    compare_every = train.watch.compare_every

    def due(done: int, every: int) -> bool:
        return done % every == 0 or done == steps.stop

    def made(step: int, rate: float) -> StepResult | None:
        """The step's result; None when its loss is no number and the recipe skips it."""
        engine.report_phase(Phase.WAITING_FOR_DATA, step + 1)
        began = time.monotonic()
        batch = next(ahead)
        waited = time.monotonic() - began
        try:
            result = engine.step(batch, step, rate, stop(), lambda loss: guard.accepts(step, loss))
        except NonFiniteLoss as error:
            guard.cannot_be(step, error)
            return None
        if result.applied:
            meter.add(result, batch.fresh, waited)
        return result

    with (
        stop_requests() as stop,
        collected_at_steps() as collect,
        prefetched(
            SlicedBatches(batches, rows), _with_batches(steps, guard), rows.rank, rows.count, engine.device
        ) as ahead,
        progress_bar("training", steps.stop, enabled=engine.is_main) as bar,
    ):
        for step in steps:
            rate = learning_rate(train.schedule, train.optimizer.lr, step, steps.stop)
            result = None if step in guard.lineage else made(step, rate)
            poll()
            done = step + 1
            collect(done)
            if result is not None and result.applied:
                if due(done, train.log_every):
                    tracker.log(done, meter.measure(result, rate))
                bar.update(done, meter.note(result))
            ends = result is not None and bool(result.stop)
            saving = due(done, train.checkpoint.every) or ends
            with meter.paused():
                if compare_every and (due(done, compare_every) or saving):
                    compare_replicas(engine, done)
                    report_slow_ranks(engine, done, train.watch.slow_ratio)
                if due(done, train.validation.every):
                    engine.report_phase(Phase.VALIDATION, done)
                    values = validate()
                    tracker.log(done, values)
                    check_validation(done, values)
                if saving:
                    engine.report_phase(Phase.SAVING, done)
                    save(done, ends or done == steps.stop)
                engine.report_phase(Phase.BETWEEN_STEPS, done)
            if result is not None and ends and done < steps.stop:
                return result.stop
    return 0


def _with_batches(steps: range, guard: FaultGuard) -> Sequence[int]:
    return [step for step in steps if step not in guard.lineage] if guard.lineage.all else steps

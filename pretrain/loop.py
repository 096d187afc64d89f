"""The training loop: next batch, step, log, validate, save. It knows no objective, no file and no DeepSpeed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from configs.progress import progress_bar
from configs.schema import Train
from pretrain.batches import Batches, prefetched
from pretrain.engine import Engine
from pretrain.metrics import Meter, Tracker
from pretrain.schedule import learning_rate


def fit(
    engine: Engine,
    batches: Batches,
    train: Train,
    steps: range,
    meter: Meter,
    tracker: Tracker,
    validate: Callable[[], dict[str, float]],
    save: Callable[[int, bool], None],
    poll: Callable[[], None] = lambda: None,
) -> bool:
    """Makes the updates `steps` (counted from 0; `steps.stop` is the length of the whole run).

    `save(done, last)` gets the updates made and whether training ends here; `poll()` is called once a step and raises
    what went wrong behind it.

    Returns False when SIGTERM or Ctrl-C ended it early: the step was finished and saved, and the same call continues.

    Raises:
        NonFiniteLoss: before a loss that is not finite reaches the weights.
    """

    def due(done: int, every: int) -> bool:
        return done % every == 0 or done == steps.stop

    with (
        stop_requests() as stop,
        prefetched(batches, steps, engine.ranks.rank, engine.ranks.count, engine.device) as ahead,
        progress_bar("training", steps.stop, enabled=engine.is_main) as bar,
    ):
        for step in steps:
            waited = time.monotonic()
            batch = next(ahead)
            waited = time.monotonic() - waited
            rate = learning_rate(train.schedule, train.optimizer.lr, step, steps.stop)
            result = engine.step(batch, step, rate, stop())
            poll()
            done = step + 1
            meter.add(result, batch.fresh, waited)
            if due(done, train.log_every):
                tracker.log(done, meter.measure(result, rate))
            bar.update(done, meter.note(result))
            with meter.paused():
                if due(done, train.validation.every):
                    tracker.log(done, validate())
                if due(done, train.checkpoint.every) or result.stop:
                    save(done, result.stop or done == steps.stop)
            if result.stop and done < steps.stop:
                return False
    return True


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """While open, SIGTERM and SIGINT only set a flag; yields a function that tells whether one came."""
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

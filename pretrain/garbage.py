"""Keeps Python's garbage collector out of the way of training.

It would stop some step of some rank for a walk over all objects, of which torch and DeepSpeed hold a million, and the
other ranks would wait for that one. So what exists when training begins is set apart, and what comes later is collected
at known steps, on all ranks at the same (as in torchtitan, arXiv:2410.06511).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

COLLECT_EVERY = 100  # steps
_apart = False  # by `imports_set_apart`; counting the objects that are apart would walk over all of them


@contextmanager
def imports_set_apart() -> Iterator[None]:
    """Hides what exists already from the collector while open: mostly modules of torch and DeepSpeed.

    DeepSpeed collects garbage several times while it makes an engine. Afterwards the collector is as it was.
    """
    global _apart
    before, frozen = _apart, _apart or gc.get_freeze_count() > 0
    gc.freeze()
    _apart = True
    try:
        yield
    finally:
        _apart = before
        if not frozen:
            gc.unfreeze()


@contextmanager
def collected_at_steps(every: int = COLLECT_EVERY) -> Iterator[Callable[[int], None]]:
    """Collects cyclic garbage, while open, only by the yielded `collect(step)`, at multiples of `every`.

    Afterwards the collector is as it was.
    """

    def collect(step: int) -> None:
        if step % every == 0:
            gc.collect()

    enabled, frozen = gc.isenabled(), _apart or gc.get_freeze_count() > 0
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield collect
    finally:
        if not frozen:  # a caller that set objects apart means to keep them apart
            gc.unfreeze()
        if enabled:
            gc.enable()

"""How far a stage is: units committed so far, seen from outside the workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from configs.progress import ProgressBar, progress_bar
from data_prep.stages import Stage

_MEGABYTE = 1e6


class Watch:
    """Adds up the bytes of text behind a stage's committed units and shows them."""

    def __init__(self, bar: ProgressBar, stage: Stage, size: Callable[[str], float]) -> None:
        self._bar = bar
        self._stage = stage
        self._size = size
        self._seen = stage.committed()
        self._bytes = self._before = sum(map(size, self._seen))
        self._started = time.monotonic()
        bar.update(self._bytes / _MEGABYTE)

    def tick(self) -> None:
        """Looks for newly committed units."""
        new = self._stage.committed() - self._seen
        if not new:
            return
        self._seen |= new
        self._bytes += sum(map(self._size, new))
        rate = (self._bytes - self._before) / _MEGABYTE / max(time.monotonic() - self._started, 1e-3)
        self._bar.update(self._bytes / _MEGABYTE, note=f"{rate:.1f} MB/s")


@contextmanager
def watch(label: str, stage: Stage, size: Callable[[str], float], total: float | None) -> Iterator[Watch]:
    """Shows a bar in MB of text while the body runs.

    Args:
        label: what is being done.
        stage: whose units to count.
        size: bytes of text behind a unit, by its name.
        total: bytes expected, None if unknown.
    """
    with progress_bar(f"{label} (MB)", None if total is None else total / _MEGABYTE) as bar:
        watcher = Watch(bar, stage, size)
        yield watcher
        watcher.tick()

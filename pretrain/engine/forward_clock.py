"""Times this rank's forward passes: whole steps take as long on all ranks, because the fast wait for the slow."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class ForwardClock:
    """Times forward passes, in which (below ZeRO-3) no rank waits for another. On a GPU by events, without waiting."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: deque[float] = deque(maxlen=1000)
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Times the code inside."""
        if not self._cuda:
            began = time.perf_counter()
            yield
            self._seconds.append(time.perf_counter() - began)
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        yield
        end.record()
        self._events.append((begin, end))

    def end_step(self) -> None:
        """Reads the step's events; call it after something has waited for the device."""
        self._seconds += [begin.elapsed_time(end) / 1000 for begin, end in self._events]
        self._events.clear()

    def median(self) -> float:
        """The median time of the passes since the last call, in seconds; 0 without any."""
        found = statistics.median(self._seconds) if self._seconds else 0.0
        self._seconds.clear()
        return found

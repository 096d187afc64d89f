"""The processes of a training run: its node launcher and its ranks, found below a process."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from pretrain.metrics.metrics_file import lines_from_the_end, metric_files

LAUNCHER = "deepspeed.launcher.launch"
SCRIPT = "train.py"


def launchers(pid: int | None = None) -> list[psutil.Process]:
    """Node launchers below a process (this one)."""
    return _below(pid, lambda words: LAUNCHER in words)


def ranks(pid: int | None = None) -> list[psutil.Process]:
    """Ranks below a process (this one), in their order."""

    def is_rank(words: list[str]) -> bool:
        return LAUNCHER not in words and any(word.endswith(SCRIPT) for word in words)

    found = _below(pid, is_rank)
    return sorted(found, key=lambda process: int(process.environ().get("RANK", "0")))


def _below(pid: int | None, wanted: Callable[[list[str]], bool]) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(pid or os.getpid()).children(recursive=True):
        try:
            if wanted(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def last_step(run: Path) -> int:
    """The step of the last whole line in a run's metrics, without reading the others; 0 when there is none."""
    steps = (step for file in reversed(metric_files(run)) for _, step in lines_from_the_end(file))
    return int(next((step for step in steps if step < math.inf), 0))


def wait_until(holds: Callable[[], object], seconds: float = 120) -> None:
    """Waits until something holds; raises `AssertionError` when it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{holds} did not come true in {seconds:g} s"
        time.sleep(0.02)

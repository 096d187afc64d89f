"""Chooses how OpenMP threads wait for each other, once per command, before torch loads OpenMP.

Spinning is twice as fast as sleeping for small models on idle cores. On busy cores it is several times slower (figures
in docs/lab-notes.md).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_LOOK_SECONDS = 0.1
_BUSY = 0.2
_SHORT_SPIN = "20000"  # turns of libgomp's loop, a fraction of a millisecond; then the thread sleeps


def choose_wait_policy() -> None:
    """Sets short spins on idle cores and none on busy ones. A policy in the environment is left unchanged."""
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return
    if _busy_fraction() < _BUSY:
        os.environ["GOMP_SPINCOUNT"] = _SHORT_SPIN
    else:
        os.environ["OMP_WAIT_POLICY"] = "passive"


def _busy_fraction() -> float:
    """Measures the busy share of all cores' time over 0.1 s; 0 without /proc/stat."""
    before = _ticks()
    time.sleep(_LOOK_SECONDS)
    idle, total = (now - then for now, then in zip(_ticks(), before, strict=True))
    return 1 - idle / total if total else 0.0


def _ticks() -> tuple[int, int]:
    """Returns idle and total clock ticks of all cores, from the first line of /proc/stat (proc(5))."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return 0, 0
    ticks = [int(field) for field in stat.read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)

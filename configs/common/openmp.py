"""How OpenMP threads wait for each other: decided once per command, before torch loads OpenMP.

Spinning is twice as fast for small models on idle cores, and several times slower than sleeping when other work runs on
them (figures in docs/lab-notes.md).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_LOOK_SECONDS = 0.1
_BUSY = 0.2
_SHORT_SPIN = "20000"  # turns of libgomp's loop, a fraction of a millisecond; then the thread sleeps


def choose_wait_policy() -> None:
    """Short spins on idle cores, none on busy ones; what the environment says already is left alone."""
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return
    if _busy_fraction() < _BUSY:
        os.environ["GOMP_SPINCOUNT"] = _SHORT_SPIN
    else:
        os.environ["OMP_WAIT_POLICY"] = "passive"


def _busy_fraction() -> float:
    """Share of all cores' time that was in use during a short look; 0 where the system does not tell."""
    before = _ticks()
    time.sleep(_LOOK_SECONDS)
    idle, total = (now - then for now, then in zip(_ticks(), before, strict=True))
    return 1 - idle / total if total else 0.0


def _ticks() -> tuple[int, int]:
    """Idle and all clock ticks of all cores so far, from the first line of /proc/stat (proc(5))."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return 0, 0
    ticks = [int(field) for field in stat.read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)

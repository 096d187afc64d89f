"""Measures where the seconds between a start and the first step go."""

from __future__ import annotations

import os
import time
from pathlib import Path

from configs.common.notices import say


class Laps:
    """A stopwatch with names."""

    def __init__(self, since_process_start: bool = False) -> None:
        """`since_process_start` counts what went by before this object was made as `python`; on Linux."""
        self._last = time.monotonic()
        self._laps: list[tuple[str, float]] = []
        stat = Path("/proc/self/stat")
        if since_process_start and stat.is_file():
            ticks = int(stat.read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19])  # field 22, proc(5)
            self._laps.append(("python", time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")))

    def lap(self, name: str) -> None:
        """Ends an interval and names it."""
        now = time.monotonic()
        self._laps.append((name, now - self._last))
        self._last = now

    def print_report(self) -> None:
        """Prints all intervals on standard error, and forgets them."""
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._laps)
        total = sum(seconds for _, seconds in self._laps)
        say(f"ready after {total:.1f} s: {parts}")
        self._laps.clear()

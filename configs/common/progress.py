"""Shows progress: a live bar on a terminal, a line every ten seconds in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from configs.common.console import Console

LOG_INTERVAL_SECONDS = 10.0


class ProgressBar(Protocol):
    """Receives the progress of long work."""

    def update(self, completed: float, note: str = "", total: float | None = None) -> None:
        """Sets the amount done; `note` is shown beside the bar, `total` replaces the total."""


class _LiveBar:
    def __init__(self, progress: Progress, description: str, total: float | None) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total, note="")

    def update(self, completed: float, note: str = "", total: float | None = None) -> None:
        if total is not None:
            self._progress.update(self._task, total=total)
        self._progress.update(self._task, completed=completed, note=note)


class _LogLines:
    """Prints the first update, then one line every `LOG_INTERVAL_SECONDS`, where output is not a terminal."""

    def __init__(self, description: str, total: float | None) -> None:
        self._description = description
        self._total = total
        self._last = -LOG_INTERVAL_SECONDS
        self._shown = -1.0
        self._kept: tuple[float, str] | None = None

    def update(self, completed: float, note: str = "", total: float | None = None) -> None:
        self._total = total if total is not None else self._total
        now = time.monotonic()
        ends = completed == self._total != self._shown
        if now - self._last < LOG_INTERVAL_SECONDS and not ends:
            self._kept = completed, note
            return
        self._last, self._kept = now, None
        self._print(completed, note)

    def end(self) -> None:
        """Prints the last update, if no line has it yet."""
        if self._kept is not None and self._kept[0] != self._shown:
            self._print(*self._kept)

    def _print(self, completed: float, note: str) -> None:
        self._shown = completed
        amount = f"{completed:,.0f}/{self._total:,.0f}" if self._total else f"{completed:,.0f}"
        print(f"{self._description}: {amount} {note}".rstrip(), file=sys.stderr, flush=True)


class _Silent:
    def update(self, completed: float, note: str = "", total: float | None = None) -> None:
        pass


@contextmanager
def progress_bar(description: str, total: float | None = None, enabled: bool = True) -> Iterator[ProgressBar]:
    """Shows progress on standard error while the body runs; `enabled=False` (ranks other than 0) shows nothing."""
    console = Console(stderr=True)
    if not enabled:
        yield _Silent()
    elif not console.is_terminal:
        lines = _LogLines(description, total)
        yield lines
        lines.end()
    else:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=console) as progress:
            yield _LiveBar(progress, description, total)

"""Limits the time of each document, and excludes documents at which workers died twice.

A document at which workers died twice is excluded (see `data_prep/workers/cluster.py`): the next run of the unit leaves
it out and keeps its raw bytes in `excluded/`.
"""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from configs.common.files import atomic_path, read_json, write_json
from data_prep.workers.stage import Stage, describe_file
from data_prep.workers.worker_notes import Note, current

_MEGABYTE = 1e6
_TICK_SECONDS = 0.5
_KEPT_ASIDE_BYTES = 16 * 2**20
EXCLUDED = "excluded"


class TooSlow(BaseException):
    """A document took longer than allowed. Not an `Exception`, because libraries catch those."""


class _Limit:
    """Raises `TooSlow` in its body after some seconds of the processor's time.

    The processor's time, not the clock's: a busy or sleeping machine must not change which documents stay. A timer
    ticks all the while, so that entering and leaving cost nothing. Code in C is interrupted when it returns; what never
    returns, the driver ends.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.held = False
        self._inside = False
        self._spent = 0.0
        self._tick = 0.0
        self._before: Any = None  # the handler that another had put there

    def start(self, seconds: float) -> None:
        """Lets the timer tick, often enough for this limit; in the main thread, as elsewhere nothing interrupts."""
        if threading.current_thread() is threading.main_thread():
            self._tick = min(_TICK_SECONDS, seconds / 4)
            before = signal.signal(signal.SIGVTALRM, self._ticked)
            self._before = before if before != self._ticked else self._before
            signal.siginterrupt(signal.SIGVTALRM, False)
            signal.setitimer(signal.ITIMER_VIRTUAL, self._tick, self._tick)

    def stop(self) -> None:
        """Stops the timer."""
        self._inside = self.held = False
        if threading.current_thread() is threading.main_thread():
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            if signal.getsignal(signal.SIGVTALRM) == self._ticked:
                signal.signal(signal.SIGVTALRM, signal.SIG_IGN if self._before is None else self._before)

    def _ticked(self, _signal: int, _frame: FrameType | None) -> None:
        self._spent += self._tick
        if self._inside and not self.held and self._spent > self.seconds:
            raise TooSlow(f"more than {self.seconds:g} s")

    def __enter__(self) -> None:
        self._spent = 0.0
        self._inside = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside = False


class _Undisturbed:
    """No `TooSlow` in the body: for bookkeeping that must be done whole."""

    def __enter__(self) -> None:
        limit.held = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        limit.held = False


limit = _Limit()
undisturbed = _Undisturbed()


class Guard:
    """Limits the time of the records of one unit, and skips excluded ones. Used as a context.

        with Guard(stage, unit, file, seconds) as guard:
            for record in records:
                if guard.next(record.position, record.size):
                    try:
                        with guard.limit:
                            ...
                    except TooSlow:
                        ...

    Args:
        stage: whose unit.
        unit: its name.
        file: name of the file that is read, for messages.
        seconds: `limits.document_seconds`, for each megabyte begun: long documents may take longer.
    """

    def __init__(self, stage: Stage, unit: str, file: str, seconds: float) -> None:
        self._stage = stage
        self._unit = unit
        self._seconds = seconds
        self._ordinal = -1
        self._beat = current()
        self._beat.enter(stage.unit_file(unit, ""), file)
        self._excluded = excluded_records(stage.unit_file(unit, ""))
        self.limit = limit
        self.files: dict[str, dict[str, Any]] = {}  # raw bytes kept aside, for the unit's `files`

    def __enter__(self) -> Guard:
        limit.start(self._seconds)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        limit.stop()

    def next(self, position: int, size: int) -> bool:
        """Goes on to the unit's next record; False: workers died at it, leave it out.

        Args:
            position: of the record in its file.
            size: its bytes.
        """
        self._ordinal += 1
        if self._ordinal in self._excluded:
            return False
        limit.seconds = self._seconds * max(1.0, size / _MEGABYTE)
        self._beat.at(position, size, limit.seconds, self._ordinal)
        return True

    def rest(self) -> None:
        """Ends the record: a hang in reading or writing after it is not blamed on it."""
        self._beat.rest()

    def keep_aside(self, value: bytes | dict[str, Any] | None) -> None:
        """Writes the start of the record just left out to `excluded/`, at most 16 MiB."""
        data = value if isinstance(value, bytes) else json.dumps(value, default=str).encode()
        path = self._stage.directory / EXCLUDED / f"{self._unit}-{self._ordinal:08d}"
        with atomic_path(path) as temporary:
            temporary.write_bytes(data[:_KEPT_ASIDE_BYTES])
        self.files[f"{EXCLUDED}/{path.name}"] = describe_file(path)


def excluded_records(unit: Path) -> set[int]:
    """Excluded records of a unit, by their number in it. `unit` is the path of its files without endings."""
    file = _list_of(unit)
    return set(read_json(file)) if file.is_file() else set()


def exclude(note: Note) -> None:
    """Excludes the document that the note names from the next run of its unit."""
    unit = Path(note.unit)
    write_json(_list_of(unit), sorted(excluded_records(unit) | {note.ordinal}))


def _list_of(unit: Path) -> Path:
    return unit.with_name(f"{unit.name}.{EXCLUDED}")

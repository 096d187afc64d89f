"""Notes which document a worker is at, in a small file that outlives the worker.

It lies on the file system that all nodes share. A worker overwrites it before every document, so the driver can tell
what a worker is at, and what a dead one was at.
"""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from configs.safety.parsing import parse_json

# ordinal in the unit, position in the file, documents, bytes, units so far; seconds allowed; length of the place
_HEADER = struct.Struct("<qqqqqdI")
_NOTE_BYTES = 16384
# Network file systems hold writes back; this often a note must get through to the driver.
_SYNC_SECONDS = 5.0


@dataclass(frozen=True)
class Note:
    """The last note of a task."""

    ordinal: int  # record of the unit, from 0
    position: int  # record of the file, as its reader counts
    documents: int  # since the task began, as are bytes and units
    bytes: int
    units: int
    seconds: float  # the document's time limit; 0: not inside a document
    unit: str  # path of the unit's files without their endings
    file: str  # name of the file that is read
    node: str

    @property
    def where(self) -> str:
        """For people."""
        place = self.file or Path(self.unit).name or "a task"
        return f"{place} document {self.position}" if self.position >= 0 else place


@dataclass
class Done:
    """Work done by a task; comes back with its result."""

    documents: int = 0
    bytes: int = 0
    units: list[str] = field(default_factory=list)  # names committed


class WorkerNote:
    """Writes the note of the task at work in this process. Without a path it only counts."""

    def __init__(self, path: Path | None = None, sync: bool = False, node: str = "") -> None:
        self.done = Done()
        self._node = node
        self._place = b""
        self._sync = sync
        self._synced = time.monotonic()
        self._ordinal = self._position = -1
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666) if path else None

    def enter(self, unit: Path | None, file: str = "") -> None:
        """Notes the next unit and the file it is read from; None for no unit."""
        place = {"unit": str(unit or ""), "file": file, "node": self._node}
        self._place = json.dumps(place).encode()[: _NOTE_BYTES - _HEADER.size]
        self._ordinal = self._position = -1
        self._write(0.0, self._place)

    def at(self, position: int, size: int, seconds: float = 0.0, ordinal: int = -1) -> None:
        """Notes the next document. Takes about a microsecond.

        Args:
            position: record of the file or row of the part.
            size: its bytes, added to the count.
            seconds: its time limit; 0: none is kept.
            ordinal: which record of the unit it is.
        """
        self._ordinal, self._position = ordinal, position
        self.done.documents += 1
        self.done.bytes += size
        self._write(seconds)

    def rest(self) -> None:
        """Ends the document: a delay after it is not blamed on it."""
        self._write(0.0)

    def committed(self, name: str) -> None:
        """Counts a unit."""
        self.done.units.append(name)
        self._write(0.0)

    def _write(self, seconds: float, place: bytes = b"") -> None:
        if self._file is None:
            return
        done = self.done
        header = _HEADER.pack(
            self._ordinal, self._position, done.documents, done.bytes, len(done.units), seconds, len(self._place)
        )
        os.pwrite(self._file, header + place, 0)
        if self._sync and time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fsync(self._file)
            self._synced = time.monotonic()

    def close(self) -> None:
        """Lets go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


_current = WorkerNote()


def current() -> WorkerNote:
    """The note of the task at work in this process."""
    return _current


@contextmanager
def noted(path: Path | None, sync: bool = False, node: str = "") -> Iterator[WorkerNote]:
    """Keeps a note at `path` while the body runs; `sync` where other machines read it, `node` is the name of this."""
    global _current
    before, _current = _current, WorkerNote(path, sync, node)
    keep = False
    try:
        _current.enter(None)
        yield _current
    except MemoryError:
        keep = True  # counts as a death: the driver will want to know where
        raise
    finally:
        _current.close()
        _current = before
        if path and not keep:
            path.unlink(missing_ok=True)


def read_note(path: Path) -> Note | None:
    """The note, or None when no task has written there yet."""
    try:
        data = path.read_bytes()
        ordinal, position, documents, size, units, seconds, length = _HEADER.unpack_from(data)
        place = parse_json(data[_HEADER.size : _HEADER.size + length] or b"{}")
    except (FileNotFoundError, struct.error, ValueError):
        return None  # not there, or caught in the middle of being written
    unit, file, node = (str(place.get(key, "")) for key in ("unit", "file", "node"))
    return Note(ordinal, position, documents, size, units, seconds, unit, file, node)

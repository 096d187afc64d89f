"""Handles tasks whose workers die or are stuck, and adds up the progress of all tasks."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.common.notices import note
from data_prep.workers.time_limit import exclude
from data_prep.workers.worker_notes import Done, Note, read_note

# A document may stand still for twice its time limit and this; then its worker is ended.
GRACE_SECONDS = 30.0

# How a worker ends, and what is said of it.
NODE, MEMORY, HUNG, CRASHED = "node", "memory", "hung", "crashed"
_WORDS = {
    NODE: "the node of a worker died",
    MEMORY: "a worker ran out of memory",
    HUNG: "a worker was stuck",
    CRASHED: "a worker died (killed or crashed)",
}
_HELP = {
    NODE: "see that the cluster's nodes stay up, then run again",
    MEMORY: "set data.workers lower or give the nodes more memory, then run again",
    HUNG: "see what this document is, or set data.limits.document_seconds higher",
    CRASHED: "the node's log says why (`dmesg`, Ray's logs); where memory is short, set data.workers lower",
}


@dataclass
class Job:
    """A task and how it fares."""

    task: Any
    notes: Path | None  # where its worker says what it is at
    deaths: int = 0
    place: tuple[str, int] | None = None  # unit, and record of it, at which a worker died last
    note: Note | None = None
    moved: float = field(default_factory=time.monotonic)  # when the note last changed
    hung: bool = False

    def start(self) -> None:
        """Forgets what an earlier worker noted."""
        self.note, self.moved, self.hung = None, time.monotonic(), False
        if self.notes:
            self.notes.unlink(missing_ok=True)

    def look(self) -> None:
        """Reads the note."""
        note = read_note(self.notes) if self.notes else None
        if note != self.note:
            self.note, self.moved = note, time.monotonic()

    @property
    def stands(self) -> bool:
        """Tells whether the worker is stuck in a document."""
        return (
            self.note is not None
            and self.note.seconds > 0
            and time.monotonic() - self.moved > 2 * self.note.seconds + GRACE_SECONDS
        )


@dataclass
class Progress:
    """Progress of one `Cluster.map`."""

    tasks: int
    finished: int = 0
    committed: list[str] = field(default_factory=list)  # units committed by finished tasks, as they finished
    documents: int = 0  # of finished tasks
    running_documents: int = 0
    running_bytes: int = 0
    running_units: int = 0
    standing: Job | None = None  # the running task whose note has not moved for longest

    def finish(self, done: Done) -> None:
        """Counts a finished task."""
        self.finished += 1
        self.committed += done.units
        self.documents += done.documents

    def look(self, jobs: Iterable[Job]) -> None:
        """Counts what the running tasks have done so far."""
        notes = [job.note for job in jobs if job.note]
        self.running_documents = sum(note.documents for note in notes)
        self.running_bytes = sum(note.bytes for note in notes)
        self.running_units = sum(note.units for note in notes)
        self.standing = min((job for job in jobs if job.note), key=lambda job: job.moved, default=None)


def record_death(job: Job, kind: str, attempts: int) -> None:
    """Counts a worker's death. The document at which workers died twice is excluded.

    Call it before the job is started again.

    Args:
        job: whose worker died.
        kind: one of the module's constants.
        attempts: deaths without progress that end the run.

    Raises:
        ValueError: when the job died too often.
    """
    job.look()
    note = job.note
    where = f" at {note.where}" if note else ""
    if note and note.node:
        where += f" on {note.node}"
    place = (note.unit, note.ordinal) if note and note.seconds > 0 and kind != NODE else None
    if note and place is not None and place == job.place:
        exclude(note)
        job.deaths, job.place = 0, None
        _say(f"{_WORDS[kind]}{where} for the second time; this document is left out (reason: crashed)")
        return
    job.deaths += 1
    job.place = place
    if job.deaths >= attempts:
        times = f"{job.deaths} times" if job.deaths > 1 else "once (data.limits.attempts is 1)"
        raise ValueError(f"{_WORDS[kind]}{where}, {times} without progress; {_HELP[kind]}")
    _say(f"{_WORDS[kind]}{where}; its task is started again (try {job.deaths + 1} of {attempts})")


def _say(text: str) -> None:
    note(text)

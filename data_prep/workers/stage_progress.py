"""Shows the progress of a stage: MB of text, throughput, units, and the document it waits for when stuck."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs.common.progress import ProgressBar, progress_bar
from data_prep.workers.stage import Stage
from data_prep.workers.worker_deaths import Progress

_MEGABYTE = 1e6
_PATIENCE_SECONDS = 20.0
_SAMPLE_BYTES = 2**18
_SAMPLES = 3
# Text unfolds to about this many times the file's size, where no sample says better.
_USUAL_RATIO = {".gz": 3.0, ".zst": 3.3, ".bz2": 3.8, ".xz": 4.0, ".lz4": 2.0, ".zip": 3.0, ".parquet": 2.0}


class ProgressReporter:
    """Adds up the bytes of text behind committed units and shows them.

    What is done already follows from the tasks that are left, or from one look into the units' directory; what comes
    is known from the results of tasks and the notes of workers.
    """

    def __init__(
        self, bar: ProgressBar, stage: Stage, size: Callable[[str], float], total: float | None, tasks: Sequence[Any]
    ) -> None:
        self._bar = bar
        self._size = size
        self._total = total
        units = [getattr(task, "name", "") for task in tasks]
        if total is not None and all(units):
            self._done = max(0.0, total - sum(map(size, units)))
        else:
            self._done = sum(map(size, stage.committed()))
        self._before = self._done
        self._read = 0  # of the progress's committed units
        self._units = -1
        self._started = self._moved = time.monotonic()
        self._show(self._done, "")

    def tick(self, progress: Progress) -> None:
        """Shows what is new."""
        new = progress.committed[self._read :]
        self._read += len(new)
        self._done += sum(map(self._size, new))
        now = time.monotonic()
        units = len(progress.committed) + progress.running_units
        if units != self._units:
            self._units, self._moved = units, now
        self._show(self._done + progress.running_bytes, self._note(progress, now))

    def _note(self, progress: Progress, now: float) -> str:
        seconds = max(now - self._started, 1e-3)
        done = self._done + progress.running_bytes - self._before
        notes = [f"{done / _MEGABYTE / seconds:.1f} MB/s"]
        if documents := progress.documents + progress.running_documents:
            notes.append(f"{documents / seconds:,.0f} documents/s")
        notes.append(f"{self._units:,} units, {progress.finished:,}/{progress.tasks:,} tasks")
        if now - self._moved > _PATIENCE_SECONDS:
            notes.append(f"waiting {now - self._moved:.0f} s for {_standing(progress)}")
        return ", ".join(notes)

    def _show(self, done: float, note: str) -> None:
        if self._total is not None and done > self._total:
            self._total = done  # it was an estimate
        total = None if self._total is None else self._total / _MEGABYTE
        self._bar.update(done / _MEGABYTE, note, total)


def _standing(progress: Progress) -> str:
    job = progress.standing
    if job is None or job.note is None:
        return "a free worker" if progress.finished < progress.tasks else "the end"
    return job.note.where + (f" on node {job.note.node}" if job.note.node else "")


@contextmanager
def report_progress(
    label: str, stage: Stage, size: Callable[[str], float], total: float | None, tasks: Sequence[Any] = ()
) -> Iterator[ProgressReporter]:
    """Shows a bar in MB of text while the body runs.

    Args:
        label: what is being done.
        stage: whose units to count.
        size: bytes of text behind a unit, by its name.
        total: bytes expected, None if unknown.
        tasks: what is left to do; those of one unit have its name as `name`.
    """
    with progress_bar(f"{label} (MB)", None if total is None else total / _MEGABYTE) as bar:
        yield ProgressReporter(bar, stage, size, total, tasks)


# ------------------------------------------------------------------------------------------------------------ estimates
def expected_bytes(files: Iterable[tuple[Path, int]]) -> float:
    """About how many bytes the files unfold to, from their sizes and the beginnings of a few.

    Args:
        files: place and size of each; a place that is no local file counts with the usual ratio of its ending.
    """
    ratios: dict[str, list[float]] = {}
    sums: dict[str, int] = {}
    for path, size in files:
        kind = path.suffix.lower()
        sums[kind] = sums.get(kind, 0) + size
        found = ratios.setdefault(kind, [])
        if len(found) < _SAMPLES and (ratio := _ratio(path)):
            found.append(ratio)
    return sum(
        size * (sum(ratios[kind]) / len(ratios[kind]) if ratios[kind] else _USUAL_RATIO.get(kind, 1.0))
        for kind, size in sums.items()
    )


def _ratio(path: Path) -> float | None:
    """Bytes unfolded for each byte of the file's beginning; None where that cannot be told."""
    if path.suffix.lower() not in (".gz", ".zst") or not path.is_file():
        return None
    import zstandard

    unfold = zlib.decompressobj(31) if path.suffix.lower() == ".gz" else zstandard.ZstdDecompressor().decompressobj()
    try:
        with path.open("rb") as stream:
            data = stream.read(_SAMPLE_BYTES)
        text = len(unfold.decompress(data))
    except Exception:  # not to be opened, or damaged: this is an estimate, and the reader will say so
        return None
    used = len(data) - len(unfold.unused_data)
    return text / used if used and text else None

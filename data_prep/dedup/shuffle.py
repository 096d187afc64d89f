"""Shuffles keyed records through files: parts write sorted records, ranges of keys read their slices.

A record is a row of `width` unsigned 64-bit numbers, the first of which is its key. Files of many writers are merged in
groups of about the square root of their number before anybody reads a range, so N writers and R readers open
N + R * sqrt(N) files instead of N * R. Memory: a merge holds `MERGE_RECORDS` records, a reader the range it asks for.
Disk: every record lies in two files while it is merged, in one afterwards. Nothing depends on who does which task.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from configs.common.files import atomic_path, temporary_beside
from data_prep.workers.stage import Run, Stage

Records = npt.NDArray[np.uint64]

MERGE_RECORDS = 1_000_000
# Records that a reader of hashed keys should meet in one range: some 100 MB with all that sorting needs.
RANGE_RECORDS = 1_000_000
RANGES = 10_000
_MOST_RANGE_RECORDS = 8_000_000
_ITEM = 8
_DTYPE = np.dtype("<u8")
_SMALLEST_WINDOW = 512


@dataclass(frozen=True)
class Exchange:
    """One shuffle inside a stage's directory.

    Args:
        stage: whose units the files belong to.
        label: distinguishes it from the stage's other shuffles.
        width: numbers in a record.
        writers: files that will be put in; known beforehand, as it settles the groups.
    """

    stage: Stage
    label: str
    width: int
    writers: int

    @property
    def groups(self) -> int:
        """Merged files."""
        return math.ceil(math.sqrt(self.writers))

    def put(self, writer: int, records: Records) -> None:
        """Writes all records of one writer, (n, width) in any order; the caller commits its unit afterwards."""
        assert records.ndim == 2 and records.shape[1] == self.width, records.shape
        with atomic_path(self._input(writer)) as temporary:
            ordered(records).astype(_DTYPE, copy=False).tofile(temporary)

    def put_blocks(self, writer: int, blocks: Iterable[Records]) -> None:
        """As `put`, from blocks that are sorted each; more than memory may hold in all."""
        files: list[Path] = []
        try:
            for block in blocks:
                files.append(temporary_beside(self._input(writer)))
                block.astype(_DTYPE, copy=False).tofile(files[-1])
            with atomic_path(self._input(writer)) as temporary, temporary.open("wb") as stream:
                for block in _merge(files, self.width):
                    write_records(stream, block)
        finally:
            for file in files:
                file.unlink(missing_ok=True)

    def merge(self, run: Run, total: float) -> int:
        """Merges what the writers put in, those groups that are not merged yet; returns the number of records.

        Args:
            run: runs the groups' units.
            total: bytes of text behind all records, for the progress bar.
        """
        tasks = [MergeTask(self, group, total / self.groups) for group in range(self.groups)]
        run(f"{self.stage.name}: {self.label}", merge_group, tasks)
        for writer in range(self.writers):
            self._input(writer).unlink(missing_ok=True)
        return sum((self.stage.unit(task.name) or {})["records"] for task in tasks)

    def discard(self) -> None:
        """Deletes what nobody will read again."""
        for group in range(self.groups):
            self._merged(group).unlink(missing_ok=True)

    def read(self, low: int, high: int) -> Records:
        """All records with low <= key < high (up to 2**64), sorted by all columns."""
        pieces = [read_records(self._merged(group), self.width, low, high) for group in range(self.groups)]
        return ordered(np.concatenate(pieces)) if pieces else np.zeros((0, self.width), np.uint64)

    def _input(self, writer: int) -> Path:
        return self.stage.unit_file(f"{self.label}.in.{writer:06d}", ".records")

    def _merged(self, group: int) -> Path:
        return self.stage.unit_file(f"{self.label}.merged.{group:05d}", ".records")


@dataclass(frozen=True)
class MergeTask:
    """One group of writers."""

    exchange: Exchange
    group: int
    bytes: float

    @property
    def name(self) -> str:
        """Name of the unit."""
        return f"{self.exchange.label}.merged.{self.group:05d}"

    def inputs(self) -> list[Path]:
        """Files of the writers of this group."""
        count, groups = self.exchange.writers, self.exchange.groups
        first, last = self.group * count // groups, (self.group + 1) * count // groups
        return [self.exchange._input(writer) for writer in range(first, last)]


def merge_group(task: MergeTask) -> None:
    """Merges the files of one group into one."""
    width = task.exchange.width
    merged = 0
    with atomic_path(task.exchange._merged(task.group)) as temporary, temporary.open("wb") as stream:
        for block in _merge(task.inputs(), width):
            write_records(stream, block)
            merged += len(block)
    task.exchange.stage.commit(task.name, {"records": merged})


def hash_ranges(records: int, size: int | None = None) -> list[tuple[int, int]]:
    """Equal ranges of keys that are hashes, about `size` (else `RANGE_RECORDS`) records each.

    Every range opens every merged file: where there would be more than `RANGES` of them, they grow, up to a limit.
    """
    usual = min(max(RANGE_RECORDS, records // RANGES), _MOST_RANGE_RECORDS)
    count = max(1, -(-records // (size or usual)))
    edges = [step * 2**64 // count for step in range(count + 1)]
    return list(itertools.pairwise(edges))


def ordered(records: Records) -> Records:
    """Sorted by all columns, the first one foremost."""
    return records[np.lexsort(tuple(records[:, column] for column in reversed(range(records.shape[1]))))]


def starts_of_runs(*columns: Records) -> npt.NDArray[np.int64]:
    """Positions in sorted columns at which the values change; the first position is one."""
    changes = np.ones(len(columns[0]), dtype=bool)
    if len(changes):
        changes[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return np.flatnonzero(changes)


def values_by_key(records: Records) -> dict[int, npt.NDArray[np.uint64]]:
    """Values of each key of (key, value), sorted by key."""
    starts = starts_of_runs(records[:, 0])
    values = np.split(records[:, 1], starts[1:]) if len(records) else []
    return dict(zip(records[starts, 0].tolist(), values, strict=True))


# -------------------------------------------------------------------------------------------------------------- merging
def _merge(files: Sequence[Path], width: int) -> Iterator[Records]:
    """Blocks of the records of all files, sorted by key; at most `MERGE_RECORDS` are held (and their sorted copy)."""
    window = max(_SMALLEST_WINDOW, MERGE_RECORDS // max(1, len(files)))
    streams = [_windows(file, width, window) for file in files]
    buffers: list[Records | None] = [next(stream, None) for stream in streams]
    while any(buffer is not None for buffer in buffers):
        # Up to the smallest last key nothing can come any more from the files' unread rest but that key itself.
        boundary = min(buffer[-1, 0] for buffer in buffers if buffer is not None)
        taken = []
        for index, buffer in enumerate(buffers):
            if buffer is None:
                continue
            stop = int(np.searchsorted(buffer[:, 0], boundary, side="right"))
            taken.append(buffer[:stop])
            buffers[index] = buffer[stop:] if stop < len(buffer) else next(streams[index], None)
        block = np.concatenate(taken)
        yield block[np.argsort(block[:, 0], kind="stable")]


def _windows(file: Path, width: int, window: int) -> Iterator[Records]:
    """The file's records, `window` at a time; opened anew for each, as there may be thousands of files."""
    offset, size = 0, file.stat().st_size
    while offset < size:
        block = np.fromfile(file, dtype=_DTYPE, count=window * width, offset=offset).reshape(-1, width)
        offset += block.nbytes
        yield block.astype(np.uint64, copy=False)


def write_records(stream: BinaryIO, records: Records) -> None:
    """Appends records to a file of them."""
    stream.write(records.astype(_DTYPE, copy=False).tobytes())


def read_records(file: Path, width: int, low: int, high: int) -> Records:
    """Records with low <= key < high of a sorted file."""
    with file.open("rb") as stream:
        descriptor = stream.fileno()
        count = os.fstat(descriptor).st_size // (width * _ITEM)
        first = _bisect(descriptor, width, count, low)
        last = count if high >= 2**64 else _bisect(descriptor, width, count, high)
        data = np.fromfile(stream, dtype=_DTYPE, count=max(0, last - first) * width, offset=first * width * _ITEM)
    return data.astype(np.uint64, copy=False).reshape(-1, width)


def _bisect(descriptor: int, width: int, count: int, key: int) -> int:
    """Number of records whose key is smaller."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if int.from_bytes(os.pread(descriptor, _ITEM, middle * width * _ITEM), "little") < key:
            low = middle + 1
        else:
            high = middle
    return low

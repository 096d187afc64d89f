"""Stage `dedup`: documents whose normalised text was met before, over all sources.

The hashes of every part lie sorted, so the documents of one range of hashes are a slice of each part. Ranges are
worked on one by one, each small enough for memory; of equal documents the first in the order of sources, files and
rows stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.files import atomic_path
from data_prep.stages import Stage, describe_file

# Documents of one range: some 50 MB with all that sorting needs.
RANGE_DOCUMENTS = 1_000_000


@dataclass(frozen=True)
class RangeTask:
    """Range `index` of `count` equal ranges of hashes."""

    stage: Stage
    documents: Path
    parts: tuple[str, ...]
    index: int
    count: int

    @property
    def name(self) -> str:
        """Unit and file name."""
        return f"range-{self.index:05d}"


def range_count(documents: int) -> int:
    """How many ranges keep one in memory."""
    return -(-documents // RANGE_DOCUMENTS)


def find_duplicates(task: RangeTask) -> None:
    """Writes (2, duplicates) int64, part numbers and rows in order, for the documents of one range."""
    low, high = ((task.index + step) * 2**64 // task.count for step in (0, 1))
    columns: list[np.ndarray] = []
    for number, part in enumerate(task.parts):
        hashes = np.load(task.documents / f"{part}.hashes.npy", mmap_mode="r")
        start = int(np.searchsorted(hashes[0], np.uint64(low)))
        stop = int(np.searchsorted(hashes[0], np.uint64(high))) if high < 2**64 else hashes.shape[1]
        slice_ = np.array(hashes[:, start:stop])
        columns.append(np.vstack([slice_, np.full((1, stop - start), number, dtype=np.uint64)]))
    first, second, rows, sizes, parts = np.hstack(columns)
    order = np.lexsort((rows, parts, second, first))
    same = (first[order][1:] == first[order][:-1]) & (second[order][1:] == second[order][:-1])
    repeated = order[1:][same]
    repeated = repeated[np.lexsort((rows[repeated], parts[repeated]))]
    found = np.stack([parts[repeated], rows[repeated]]).astype(np.int64)
    file = task.stage.directory / f"{task.name}.npy"
    with atomic_path(file) as temporary, temporary.open("wb") as stream:
        np.save(stream, found)
    task.stage.commit(
        task.name,
        {"counts": _by_part(task.parts, found[0], sizes[repeated]), "files": {file.name: describe_file(file)}},
    )


def _by_part(names: tuple[str, ...], parts: np.ndarray, sizes: np.ndarray) -> dict[str, list[int]]:
    """Duplicates and their bytes in each part that has any."""
    documents = np.bincount(parts, minlength=len(names))
    totals = np.zeros(len(names), dtype=np.int64)
    np.add.at(totals, parts, sizes.astype(np.int64))
    return {names[number]: [int(documents[number]), int(totals[number])] for number in np.flatnonzero(documents)}


def duplicate_rows(directory: Path, ranges: int, part: int) -> np.ndarray:
    """Rows of the part with this number that are duplicates."""
    found: list[Any] = [np.zeros(0, dtype=np.int64)]
    for index in range(ranges):
        parts, rows = np.load(directory / f"range-{index:05d}.npy", mmap_mode="r")
        found.append(rows[np.searchsorted(parts, part) : np.searchsorted(parts, part, side="right")])
    return np.concatenate(found)

"""Numbers all documents over all parts, in the order that decides which document comes first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from configs.common.files import atomic_path
from data_prep.workers.stage import Stage
from data_prep.workers.verdicts import Part

# Documents are numbered below this, a million million.
DOCUMENT_BITS = 40


@dataclass(frozen=True)
class NumberedPart:
    """A part, its position among the parts, and the number of its first row."""

    stage: Stage
    part: Part
    index: int
    base: int

    @property
    def end(self) -> int:
        """The number after its last row."""
        return self.base + self.part.rows


def number_parts(stage: Stage, parts: Sequence[Part]) -> list[NumberedPart]:
    """Numbers all rows. Writes a table into the stage, which `DocumentIndex` reads.

    Raises:
        ValueError: for more documents than there are numbers.
    """
    edges = np.concatenate([[0], np.cumsum([part.rows for part in parts], dtype=np.int64)])
    if edges[-1] >= 2**DOCUMENT_BITS:
        raise ValueError(f"{edges[-1]} documents are more than deduplication can number ({2**DOCUMENT_BITS - 1})")
    with atomic_path(_table(stage)) as temporary, temporary.open("wb") as stream:
        np.savez(stream, edges=edges, names=np.array([part.name for part in parts], dtype=np.str_))
    return [NumberedPart(stage, part, index, int(edges[index])) for index, part in enumerate(parts)]


class DocumentIndex:
    """Finds part and row of a document by its number."""

    def __init__(self, edges: npt.NDArray[np.int64], names: npt.NDArray[np.str_]) -> None:
        self._edges = edges
        self._names = names

    @staticmethod
    def of(stage: Stage) -> DocumentIndex:
        """Reads the table of the stage. Remembers it for the next task of this worker."""
        file = _table(stage)
        return _read(file, file.stat().st_mtime_ns)

    def parts(self, numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Position among the parts of each number; parts without rows have none."""
        return np.searchsorted(self._edges, numbers.astype(np.int64), side="right") - 1

    def name(self, part: int) -> str:
        """Name of the part at this position."""
        return str(self._names[part])

    def describe(self, numbers: npt.NDArray[np.uint64]) -> list[str]:
        """Each as `PART:ROW`."""
        parts = self.parts(numbers)
        rows = numbers.astype(np.int64) - self._edges[parts]
        return [f"{self._names[part]}:{row}" for part, row in zip(parts, rows, strict=True)]


def _table(stage: Stage) -> Path:
    return stage.unit_file("numbering", ".npz")


@lru_cache(maxsize=4)
def _read(file: Path, _changed: int) -> DocumentIndex:
    with np.load(file) as table:
        return DocumentIndex(table["edges"], table["names"])

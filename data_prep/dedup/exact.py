"""Verdict stage `exact`: drops documents whose normalised text occurred before, over all sources.

Texts are compared by the 128-bit BLAKE2b hashes that stage `documents` left beside its parts. Of equal documents the
first in the order of sources, files and rows stays. A part sends the first of its equal documents into the shuffle
alone, so a text found a million times comes to a range at most once a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_prep.dedup.document_index import DocumentIndex, NumberedPart
from data_prep.dedup.passes import PASSES_CODE, PartTask, Passes, RangeTask
from data_prep.dedup.shuffle import Records, starts_of_runs
from data_prep.workers.stage import Run, Stage
from data_prep.workers.verdicts import Part, VerdictWriter

REASON = "duplicate"


class ExactDeduplication:
    """The stage, for the pipeline."""

    name = "exact"
    code = ("dedup/exact", *PASSES_CODE)

    def __init__(self) -> None:
        self.inputs: dict[str, Any] = {}

    def make(self, stage: Stage, parts: Sequence[Part], run: Run) -> dict[str, Any]:
        """Parts -> ranges of hashes -> parts."""
        passes = Passes(stage, parts, run, None)
        keys = passes.put("hashes", put_keys, width=3)
        found = passes.find("duplicates", find_duplicates, keys)
        passes.write(write_verdicts, found)
        return {}


def put_keys(task: PartTask[None]) -> None:
    """Both halves of the hash and the number of the first document of each text."""
    hashes = _hashes(task.numbered)
    firsts = hashes[:, starts_of_runs(hashes[0], hashes[1])]
    task.put(np.stack([*firsts[:2], firsts[2] + np.uint64(task.numbered.base)], axis=1))
    task.commit()


def find_duplicates(task: RangeTask[None]) -> None:
    """(number, number of the first with the same text) of all in the range but the first."""
    records = task.read()
    first = np.zeros(len(records), dtype=bool)
    starts = starts_of_runs(records[:, 0], records[:, 1])
    first[starts] = True
    kept = np.repeat(records[starts, 2], np.diff([*starts, len(records)]))
    task.put(np.stack([records[:, 2], kept], axis=1)[~first])
    task.commit()


def write_verdicts(task: PartTask[None]) -> None:
    """Drops the documents met in earlier parts, then all but the first of those equal within the part."""
    numbered = task.numbered
    writer = VerdictWriter(numbered.part)
    hashes = _hashes(numbered)
    found = task.read()
    starts = starts_of_runs(hashes[0], hashes[1])
    numbers = hashes[2] + np.uint64(numbered.base)
    keepers = np.repeat(numbers[starts], np.diff([*starts, len(numbers)]))
    place = np.searchsorted(found[:, 0], keepers)
    if len(found):
        place = np.minimum(place, len(found) - 1)
        earlier = found[place, 0] == keepers
        keepers[earlier] = found[place[earlier], 1]
    dropped = np.flatnonzero(keepers != numbers)
    details = DocumentIndex.of(task.stage).describe(keepers[dropped])
    for index, detail in zip(dropped.tolist(), details, strict=True):
        writer.drop(int(hashes[2, index]), REASON, int(hashes[3, index]), f"same as {detail}")
    writer.commit(task.stage)


def _hashes(numbered: NumberedPart) -> Records:
    """(4, documents): both halves of the hash, the row, the bytes; sorted by hash, then row."""
    hashes: Records = np.load(numbered.part.documents / f"{numbered.part.name}.hashes.npy")
    return hashes

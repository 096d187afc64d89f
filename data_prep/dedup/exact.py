"""Verdict stage `exact`: documents whose normalised text was met before, over all sources.

Texts are compared by the 128-bit BLAKE2b hashes that stage `documents` left beside its parts. Of equal documents the
first in the order of sources, files and rows stays. A part sends the first of its equal documents into the shuffle
alone, so a text found a million times comes to a range at most once a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.dedup.document_index import NumberedPart, Places, number_parts
from data_prep.dedup.shuffle import Exchange, Records, constant, hash_ranges, starts_of_runs
from data_prep.work.stage import Stage
from data_prep.work.verdicts import Part, Run, VerdictWriter

REASON = "duplicate"


@dataclass(frozen=True)
class KeysTask:
    """Hashes of one part into the shuffle."""

    numbered: NumberedPart
    keys: Exchange

    @property
    def name(self) -> str:
        """Name of the unit."""
        return f"keys.{self.numbered.part.name}"


@dataclass(frozen=True)
class RangeTask:
    """One range of hashes."""

    keys: Exchange
    found: Exchange
    index: int
    low: int
    high: int

    @property
    def name(self) -> str:
        """Name of the unit."""
        return f"range.{self.index:06d}"


@dataclass(frozen=True)
class PartTask:
    """Verdicts on one part."""

    numbered: NumberedPart
    found: Exchange

    @property
    def name(self) -> str:
        """Name of the unit."""
        return self.numbered.part.name


class Exact:
    """The stage, for the pipeline."""

    name = "exact"
    code = ("dedup/exact", "dedup/shuffle", "dedup/document_index", "work/verdicts", "work/parts")

    def __init__(self) -> None:
        self.inputs: dict[str, Any] = {}

    def make(self, stage: Stage, parts: Sequence[Part], run: Run) -> dict[str, Any]:
        """Parts -> ranges of hashes -> parts."""
        total = float(sum(part.bytes for part in parts))
        sizes = {part.name: float(part.bytes) for part in parts}
        numbered = number_parts(stage, parts)
        keys = Exchange(stage, "keys", 3, len(parts))
        puts = [KeysTask(part, keys) for part in numbered]
        missing = [task for task in puts if stage.unit(task.name) is None]
        run("exact: hashes", put_keys, missing, lambda name: sizes.get(name.removeprefix("keys."), 0.0), total)
        ranges = hash_ranges(keys.merge(run, total))
        found = Exchange(stage, "found", 2, len(ranges))
        finds = [RangeTask(keys, found, index, low, high) for index, (low, high) in enumerate(ranges)]
        unfound = [task for task in finds if stage.unit(task.name) is None]
        run("exact: duplicates", find_duplicates, unfound, constant(total / len(ranges)), total)
        keys.discard()
        found.merge(run, total)
        left = [PartTask(part, found) for part in numbered if stage.unit(part.part.name) is None]
        run("exact: verdicts", write_verdicts, left, lambda name: sizes.get(name, 0.0), total)
        return {}


def put_keys(task: KeysTask) -> None:
    """Both halves of the hash and the number of the first document of each text."""
    hashes = _hashes(task.numbered)
    firsts = hashes[:, starts_of_runs(hashes[0], hashes[1])]
    task.keys.put(task.numbered.index, np.stack([*firsts[:2], firsts[2] + np.uint64(task.numbered.base)], axis=1))
    task.numbered.stage.commit(task.name, {})


def find_duplicates(task: RangeTask) -> None:
    """(number, number of the first with the same text) of all in the range but the first."""
    records = task.keys.read(task.low, task.high)
    first = np.zeros(len(records), dtype=bool)
    starts = starts_of_runs(records[:, 0], records[:, 1])
    first[starts] = True
    kept = np.repeat(records[starts, 2], np.diff([*starts, len(records)]))
    task.found.put(task.index, np.stack([records[:, 2], kept], axis=1)[~first])
    task.keys.stage.commit(task.name, {})


def write_verdicts(task: PartTask) -> None:
    """Drops the documents met in earlier parts, then all but the first of those equal within the part."""
    numbered = task.numbered
    writer = VerdictWriter(numbered.part)
    hashes = _hashes(numbered)
    found = task.found.read(numbered.base, numbered.end)
    starts = starts_of_runs(hashes[0], hashes[1])
    numbers = hashes[2] + np.uint64(numbered.base)
    keepers = np.repeat(numbers[starts], np.diff([*starts, len(numbers)]))
    place = np.searchsorted(found[:, 0], keepers)
    if len(found):
        place = np.minimum(place, len(found) - 1)
        earlier = found[place, 0] == keepers
        keepers[earlier] = found[place[earlier], 1]
    dropped = np.flatnonzero(keepers != numbers)
    details = Places.of(numbered.stage).describe(keepers[dropped])
    for index, detail in zip(dropped.tolist(), details, strict=True):
        writer.drop(int(hashes[2, index]), REASON, int(hashes[3, index]), f"same as {detail}")
    writer.commit(numbered.stage)


def _hashes(numbered: NumberedPart) -> Records:
    """(4, documents): both halves of the hash, the row, the bytes; sorted by hash, then row."""
    hashes: Records = np.load(numbered.part.documents / f"{numbered.part.name}.hashes.npy")
    return hashes

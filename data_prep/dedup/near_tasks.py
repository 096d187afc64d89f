"""The tasks of stage `near`, each a unit of work of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_prep.dedup.components import keyed_for, smallest_members
from data_prep.dedup.document_index import DOCUMENT_BITS, NumberedPart, Places
from data_prep.dedup.pairs import SetReader, as_similar, bucket_pairs, spread_buckets, write_sets
from data_prep.dedup.shingles import MinHash, Shingler, band_keys
from data_prep.dedup.shuffle import Exchange, Records, ordered, starts_of_runs
from data_prep.text.hashing import mix
from data_prep.work.stage import Stage
from data_prep.work.verdicts import VerdictWriter, remaining

REASON = "near_duplicate"
_BATCH_CHARACTERS = 2**18
_SET_MEMORY = 64 * 2**20
_NUMBER = np.uint64(2**DOCUMENT_BITS - 1)
_LONGEST = 2 ** (64 - DOCUMENT_BITS) - 1


@dataclass(frozen=True)
class Near:
    """What all tasks of the stage know.

    Attributes:
        stage: where the work is done.
        similarity, shingle, unit, keep, verify: as in `configs.schema.data.NearDuplicates`.
        bands, rows: of the signature.
        parts: how many there are.
    """

    stage: Stage
    similarity: float
    shingle: int
    unit: Literal["word", "character"]
    keep: Literal["first", "longest"]
    verify: bool
    bands: int
    rows: int
    parts: int

    @property
    def groups(self) -> int:
        """Parts are taken in so many groups when pairs are put into blocks."""
        return math.ceil(math.sqrt(self.parts))

    def sets_file(self, part: str) -> Path:
        """Shingle sets of the part's documents that are in a candidate pair."""
        return self.stage.unit_file(f"sets.{part}", ".sets")


@dataclass(frozen=True)
class PartTask:
    """One part; reads `source` (if any), writes to `result` (if any)."""

    near: Near
    numbered: NumberedPart
    phase: str
    source: Exchange | None = None
    result: Exchange | None = None

    @property
    def name(self) -> str:
        """Name of the unit; the verdicts have that of the part."""
        return f"{self.phase}.{self.numbered.part.name}" if self.phase else self.numbered.part.name


@dataclass(frozen=True)
class RangeTask:
    """Keys from `low` to `high` of `source`; writes to `result` and `wanted` (if any)."""

    near: Near
    phase: str
    index: int
    low: int
    high: int
    source: Exchange
    result: Exchange
    wanted: Exchange | None = None

    @property
    def name(self) -> str:
        """Name of the unit."""
        return f"{self.phase}.{self.index:06d}"


# --------------------------------------------------------------------------------------------------------------- bands
def nodes_of(near: Near, numbers: npt.NDArray[np.uint64], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Numbers that put the document to keep first."""
    if near.keep == "first":
        return numbers
    shortfall = np.uint64(_LONGEST) - np.minimum(sizes, _LONGEST).astype(np.uint64)
    nodes: npt.NDArray[np.uint64] = (shortfall << np.uint64(DOCUMENT_BITS)) | numbers
    return nodes


def batches(task: PartTask, wanted: npt.NDArray[np.uint64] | None = None) -> Iterator[tuple[list[int], list[str]]]:
    """Numbers and texts of the part, some hundred kilobytes at a time; of `wanted` numbers (sorted) alone, if given."""
    numbers: list[int] = []
    texts: list[str] = []
    size = 0
    chosen = None if wanted is None else set(wanted.tolist())
    for row, fields in remaining(task.numbered.part, ["text"]):
        number = task.numbered.base + row
        if chosen is not None and number not in chosen:
            continue
        numbers.append(number)
        texts.append(fields["text"])
        size += len(fields["text"])
        if size >= _BATCH_CHARACTERS:
            yield numbers, texts
            numbers, texts, size = [], [], 0
    if numbers:
        yield numbers, texts


def put_bands(task: PartTask) -> None:
    """Band keys of the part's documents into the shuffle."""
    near = task.near
    assert task.result is not None
    shingler, minhash = Shingler(near.shingle, near.unit), MinHash(near.bands * near.rows)
    records = [np.zeros((0, 2), np.uint64)]
    for numbers, texts in batches(task):
        hashes, counts = shingler.shingles(texts)
        sizes = np.array([len(text.encode()) for text in texts], dtype=np.int64)
        nodes = nodes_of(near, np.array(numbers, dtype=np.uint64), sizes)[counts > 0]
        keys = band_keys(minhash.signatures(hashes, counts)[counts > 0], near.bands, near.rows)
        records.append(np.stack([keys.ravel(), np.repeat(nodes, near.bands)], axis=1))
    task.result.put(task.numbered.index, spread_buckets(ordered(np.concatenate(records)), task.numbered.index))
    near.stage.commit(task.name, {})


# --------------------------------------------------------------------------------------------------------------- pairs
def find_pairs(task: RangeTask) -> None:
    """Candidate pairs of one range of band keys; with verification, also the numbers of their documents."""
    pairs = bucket_pairs(task.source.read(task.low, task.high))
    if task.wanted is None:
        task.result.put(task.index, keyed_for(pairs, large=True))
    else:
        task.result.put(task.index, np.concatenate([_block_keys(task.near, pairs), pairs], axis=1))
        task.wanted.put(task.index, np.unique(pairs & _NUMBER)[:, None])
    task.near.stage.commit(task.name, {})


def _block_keys(near: Near, pairs: Records) -> Records:
    """Keys that bring pairs together whose documents are in the same two groups of parts, and split large blocks."""
    places = Places.of(near.stage)
    left, right = (places.parts(pairs[:, side] & _NUMBER) * near.groups // near.parts for side in (0, 1))
    block = np.minimum(left, right) * near.groups + np.maximum(left, right)
    high = mix(block.astype(np.uint64)) & ~np.uint64(2**20 - 1)
    return (high | (mix(pairs[:, 0]) >> np.uint64(44)))[:, None]


def make_sets(task: PartTask) -> None:
    """Shingle sets of the part's documents that some candidate pair names."""
    near = task.near
    assert task.source is not None
    wanted = np.unique(task.source.read(task.numbered.base, task.numbered.end))
    shingler = Shingler(near.shingle, near.unit)
    sets: list[npt.NDArray[np.uint32]] = []
    if len(wanted):
        for _, texts in batches(task, wanted):
            sets.extend(shingler.sets(texts))
    write_sets(near.sets_file(task.numbered.part.name), wanted, sets)
    near.stage.commit(task.name, {})


def verify_pairs(task: RangeTask) -> None:
    """Keeps the candidate pairs that are as similar as asked."""
    near = task.near
    records = task.source.read(task.low, task.high)
    pairs = records[starts_of_runs(*records.T), 1:]
    places, reader = Places.of(near.stage), SetReader(_SET_MEMORY)
    files = [[near.sets_file(places.name(part)) for part in places.parts(pairs[:, side] & _NUMBER)] for side in (0, 1)]
    numbers = (pairs & _NUMBER).tolist()
    similar = [
        as_similar(reader.get(left, first), reader.get(right, second), near.similarity)
        for left, right, (first, second) in zip(*files, numbers, strict=True)
    ]
    verified = pairs[np.array(similar, dtype=bool)]
    task.result.put(task.index, keyed_for(verified, large=True))
    near.stage.commit(task.name, {"candidates": len(pairs), "verified": len(verified)})


# ------------------------------------------------------------------------------------------------------------- verdicts
def label_all(task: RangeTask) -> None:
    """Components of all edges at once."""
    labels = smallest_members(task.source.read(task.low, task.high)[:, 1:])
    _put_labels(task, labels)


def label_stars(task: RangeTask) -> None:
    """Components from stars, which name the smallest node already."""
    _put_labels(task, task.source.read(task.low, task.high)[:, 1:])


def _put_labels(task: RangeTask, labels: Records) -> None:
    task.result.put(task.index, labels & _NUMBER)
    task.near.stage.commit(task.name, {})


def write_verdicts(task: PartTask) -> None:
    """Drops all documents of a component but the one that stays."""
    assert task.source is not None
    numbered = task.numbered
    writer = VerdictWriter(numbered.part)
    found = task.source.read(numbered.base, numbered.end)
    if len(found):
        details = Places.of(task.near.stage).describe(found[:, 1])
        kept = dict(zip(found[:, 0].tolist(), details, strict=True))
        for row, fields in remaining(numbered.part, ["bytes"]):
            if numbered.base + row in kept:
                writer.drop(row, REASON, fields["bytes"], f"like {kept[numbered.base + row]}")
    writer.commit(task.near.stage)

"""The tasks of stage `near`; each commits one work unit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from configs.schema.data import NearDuplicates
from data_prep.dedup.components import keyed_for, smallest_members
from data_prep.dedup.document_index import DOCUMENT_BITS, DocumentIndex
from data_prep.dedup.minhash import MinHash, band_keys
from data_prep.dedup.pairs import SetReader, as_similar, bucket_pairs, spread_buckets, write_sets
from data_prep.dedup.passes import PartTask, RangeTask
from data_prep.dedup.shingles import Shingler
from data_prep.dedup.shuffle import Records, ordered, starts_of_runs
from data_prep.text.hashing import mix
from data_prep.workers.stage import Stage
from data_prep.workers.verdicts import VerdictWriter, remaining

REASON = "near_duplicate"
Numbers = npt.NDArray[np.uint64]  # of documents

_BATCH_CHARACTERS = 2**18
_SET_MEMORY = 64 * 2**20
_NUMBER = np.uint64(2**DOCUMENT_BITS - 1)
_LONGEST = 2 ** (64 - DOCUMENT_BITS) - 1


@dataclass(frozen=True)
class NearSettings:
    """Settings that all tasks of the stage need.

    Attributes:
        similarity, shingle, unit, keep, verify: as in `configs.schema.data.NearDuplicates`.
        bands, rows: of the MinHash signature.
        parts: number of parts.
    """

    similarity: float
    shingle: int
    unit: Literal["word", "character"]
    keep: Literal["first", "longest"]
    verify: bool
    bands: int
    rows: int
    parts: int

    @classmethod
    def of(cls, settings: NearDuplicates, bands: int, rows: int, parts: int) -> NearSettings:
        """The recipe's settings with what was derived from them."""
        return cls(
            settings.similarity, settings.shingle, settings.unit, settings.keep, settings.verify, bands, rows, parts
        )

    @property
    def groups(self) -> int:
        """Number of groups that parts are taken in when pairs are put into blocks."""
        return math.ceil(math.sqrt(self.parts))


NearPart = PartTask[NearSettings]
NearRange = RangeTask[NearSettings]


def _sets_file(stage: Stage, part: str) -> Path:
    """Shingle sets of the part's documents that are in a candidate pair."""
    return stage.unit_file(f"sets.{part}", ".sets")


# --------------------------------------------------------------------------------------------------------------- bands
def nodes_of(near: NearSettings, numbers: Numbers, sizes: npt.NDArray[np.int64]) -> Numbers:
    """Node numbers under which the document to keep is the smallest of its component."""
    if near.keep == "first":
        return numbers
    # The upper 24 bits are smaller for longer documents; among equally long ones the first has the smallest node.
    shortfall = np.uint64(_LONGEST) - np.minimum(sizes, _LONGEST).astype(np.uint64)
    nodes: Numbers = (shortfall << np.uint64(DOCUMENT_BITS)) | numbers
    return nodes


def batches(task: NearPart, wanted: Numbers | None = None) -> Iterator[tuple[list[int], list[str]]]:
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


def put_bands(task: NearPart) -> None:
    """Band keys of the part's documents into the shuffle."""
    near = task.settings
    shingler, minhash = Shingler(near.shingle, near.unit), MinHash(near.bands * near.rows)
    records = [np.zeros((0, 2), np.uint64)]
    for numbers, texts in batches(task):
        hashes, counts = shingler.shingles(texts)
        sizes = np.array([len(text.encode()) for text in texts], dtype=np.int64)
        nodes = nodes_of(near, np.array(numbers, dtype=np.uint64), sizes)[counts > 0]
        keys = band_keys(minhash.signatures(hashes, counts)[counts > 0], near.bands, near.rows)
        records.append(np.stack([keys.ravel(), np.repeat(nodes, near.bands)], axis=1))
    task.put(spread_buckets(ordered(np.concatenate(records)), task.numbered.index))
    task.commit()


# --------------------------------------------------------------------------------------------------------------- pairs
def find_pairs(task: NearRange) -> None:
    """Candidate pairs of one range of band keys; with verification, also the numbers of their documents."""
    pairs = bucket_pairs(task.read())
    if task.wanted is None:
        task.put(keyed_for(pairs, large=True))
    else:
        task.put(np.concatenate([_block_keys(task, pairs), pairs], axis=1))
        task.wanted.put(task.index, np.unique(pairs & _NUMBER)[:, None])
    task.commit()


def _block_keys(task: NearRange, pairs: Records) -> Records:
    """Keys that bring pairs together whose documents are in the same two groups of parts.

    A task that verifies one range of keys then reads shingle sets of few parts. Example with 9 parts in 3 groups:

        pair (document of part 1, document of part 7)     groups 0 and 2     block 0 * 3 + 2 = 2
        pair (document of part 8, document of part 0)     groups 2 and 0     block 2 as well

    The upper 44 bits of the key are a hash of the block; the lower 20 spread a large block over several ranges.
    """
    near, documents = task.settings, DocumentIndex.of(task.stage)
    left, right = (documents.parts(pairs[:, side] & _NUMBER) * near.groups // near.parts for side in (0, 1))
    block = np.minimum(left, right) * near.groups + np.maximum(left, right)
    high = mix(block.astype(np.uint64)) & ~np.uint64(2**20 - 1)
    return (high | (mix(pairs[:, 0]) >> np.uint64(44)))[:, None]


def make_sets(task: NearPart) -> None:
    """Shingle sets of the part's documents that some candidate pair names."""
    near = task.settings
    wanted = np.unique(task.read())
    shingler = Shingler(near.shingle, near.unit)
    sets: list[npt.NDArray[np.uint32]] = []
    if len(wanted):
        for _, texts in batches(task, wanted):
            sets.extend(shingler.sets(texts))
    write_sets(_sets_file(task.stage, task.numbered.part.name), wanted, sets)
    task.commit()


def verify_pairs(task: NearRange) -> None:
    """Keeps the candidate pairs that are as similar as asked."""
    near = task.settings
    records = task.read()
    pairs = records[starts_of_runs(*records.T), 1:]
    documents, reader = DocumentIndex.of(task.stage), SetReader(_SET_MEMORY)
    files = [
        [_sets_file(task.stage, documents.name(part)) for part in documents.parts(pairs[:, side] & _NUMBER)]
        for side in (0, 1)
    ]
    numbers = (pairs & _NUMBER).tolist()
    similar = [
        as_similar(reader.get(left, first), reader.get(right, second), near.similarity)
        for left, right, (first, second) in zip(*files, numbers, strict=True)
    ]
    verified = pairs[np.array(similar, dtype=bool)]
    task.put(keyed_for(verified, large=True))
    task.commit({"candidates": len(pairs), "verified": len(verified)})


# ------------------------------------------------------------------------------------------------------------- verdicts
def label_all(task: NearRange) -> None:
    """Components of all edges at once."""
    labels = smallest_members(task.read()[:, 1:])
    _put_labels(task, labels)


def label_stars(task: NearRange) -> None:
    """Components from stars, which name the smallest node already."""
    _put_labels(task, task.read()[:, 1:])


def _put_labels(task: NearRange, labels: Records) -> None:
    task.put(labels & _NUMBER)
    task.commit()


def write_verdicts(task: NearPart) -> None:
    """Drops all documents of a component but the one that stays."""
    numbered = task.numbered
    writer = VerdictWriter(numbered.part)
    found = task.read()
    if len(found):
        details = DocumentIndex.of(task.stage).describe(found[:, 1])
        kept = dict(zip(found[:, 0].tolist(), details, strict=True))
        for row, fields in remaining(numbered.part, ["bytes"]):
            if numbered.base + row in kept:
                writer.drop(row, REASON, fields["bytes"], f"like {kept[numbered.base + row]}")
    writer.commit(task.stage)

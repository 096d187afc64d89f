"""Candidate pairs from band keys, and their verification by the shingle sets themselves.

Nodes are documents as numbers, smaller ones being preferred as the one that stays; see `near`.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from configs.files import atomic_path
from data_prep.dedup.shingles import Hashes
from data_prep.dedup.shuffle import Records, starts_of_runs

# Every member of a bucket is paired with the first and with this many before it: all pairs of small buckets, and no
# more than linearly many of a bucket of a million.
WINDOW = 16


def bucket_pairs(records: Records) -> Records:
    """Pairs (smaller node, larger node), sorted, each once, from (key, node) sorted by both."""
    if len(records) < 2:
        return np.zeros((0, 2), np.uint64)
    keys, nodes = records[:, 0], records[:, 1]
    starts = starts_of_runs(keys)
    firsts = np.repeat(starts, np.diff([*starts, len(keys)]))
    members = np.arange(len(keys))
    found = [np.stack([nodes[firsts], nodes], axis=1)[members > firsts]]
    for distance in range(1, WINDOW + 1):
        later = np.flatnonzero(members - firsts > distance)
        if not len(later):
            break
        found.append(np.stack([nodes[later - distance], nodes[later]], axis=1))
    return distinct(np.concatenate(found))


def distinct(pairs: Records) -> Records:
    """Sorted, each pair once."""
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    return pairs[starts_of_runs(pairs[:, 0], pairs[:, 1])]


def split_buckets(records: Records, limit: int) -> tuple[Records, Records]:
    """What one part sends into the shuffle, and the pairs it finds by itself.

    Args:
        records: (key, node) of the part, sorted by both.
        limit: of each key at most this many records, the first ones, are sent; more than `WINDOW`.

    Returns:
        records to send; pairs of the members beyond them, with the first and with those shortly before them.
    """
    assert limit > WINDOW
    starts = starts_of_runs(records[:, 0])
    sizes = np.diff([*starts, len(records)])
    firsts = np.repeat(starts, sizes)
    beyond = np.arange(len(records)) - firsts >= limit
    if not beyond.any():
        return records, np.zeros((0, 2), np.uint64)
    crowded = np.repeat(sizes > limit, sizes)
    pairs = bucket_pairs(records[crowded])
    late = distinct(np.stack([records[beyond, 1], records[beyond, 1]], axis=1))[:, 0]
    return records[~beyond], pairs[np.isin(pairs[:, 1], late)]


# --------------------------------------------------------------------------------------------------------- verification
def write_sets(file: Path, numbers: npt.NDArray[np.uint64], sets: list[Hashes]) -> None:
    """Writes shingle sets of some documents: their count, numbers (sorted), where each set ends, the sets."""
    ends = np.cumsum([len(shingles) for shingles in sets], dtype=np.uint64)
    with atomic_path(file) as temporary, temporary.open("wb") as stream:
        for column in (np.array([len(numbers)], dtype="<u8"), numbers.astype("<u8"), ends.astype("<u8")):
            stream.write(column.tobytes())
        for shingles in sets:
            stream.write(shingles.astype("<u4", copy=False).tobytes())


class SetReader:
    """Reads single sets out of the files of many parts; holds at most `memory` bytes of what it has read."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._held = 0
        self._cache: OrderedDict[tuple[Path, int], npt.NDArray[np.uint64] | Hashes] = OrderedDict()

    def get(self, file: Path, number: int) -> Hashes:
        """The set of the document with this number, which must be in the file."""
        known = self._cache.get((file, number))
        if known is None:
            known = self._read(file, number)
            self._keep((file, number), known)
        else:
            self._cache.move_to_end((file, number))
        return known.astype(np.uint32, copy=False)

    def _read(self, file: Path, number: int) -> Hashes:
        index = self._index(file)
        count = len(index) // 2
        place = int(np.searchsorted(index[:count], np.uint64(number)))
        assert index[place] == number, (file, number)
        start = int(index[count + place - 1]) if place else 0
        length = int(index[count + place]) - start
        return np.fromfile(file, dtype="<u4", count=length, offset=8 + 16 * count + 4 * start)

    def _index(self, file: Path) -> npt.NDArray[np.uint64]:
        known = self._cache.get((file, -1))
        if known is None:
            count = int(np.fromfile(file, dtype="<u8", count=1)[0])
            known = np.fromfile(file, dtype="<u8", count=2 * count, offset=8)
            self._keep((file, -1), known)
        return known.astype(np.uint64, copy=False)

    def _keep(self, key: tuple[Path, int], values: npt.NDArray[np.uint64] | Hashes) -> None:
        self._cache[key] = values
        self._held += values.nbytes
        while self._held > self._memory and len(self._cache) > 1:
            self._held -= self._cache.popitem(last=False)[1].nbytes


def as_similar(first: Hashes, second: Hashes, similarity: float) -> bool:
    """Whether the Jaccard similarity of two sets, sorted and without repetitions, is at least `similarity`."""
    small, large = sorted((len(first), len(second)))
    if not large or small < similarity * large:
        return False
    both = np.concatenate([first, second])
    both.sort()
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared >= similarity * (small + large - shared)

"""Makes candidate pairs from band keys and verifies them by their shingle sets.

Nodes are documents as numbers, smaller ones being preferred as the one that stays; see `near`.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from configs.common.files import atomic_path
from data_prep.dedup.shingles import Hashes
from data_prep.dedup.shuffle import Records, ordered, starts_of_runs
from data_prep.text.hashing import mix

# Every member of a bucket is paired with the first and with this many before it: all pairs of small buckets, and no
# more than linearly many of a bucket of a million.
WINDOW = 16
BUCKET_LIMIT = 64


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


def spread_buckets(records: Records, salt: int, limit: int = BUCKET_LIMIT) -> Records:
    """Puts the members of crowded buckets of one part into buckets of at most `limit` and those that tie them together.

    Every `limit` members after the first get a key of their own, with copies of the bucket's first member and of the
    `WINDOW` members before them; so the pairs of `bucket_pairs` stay the same within the part, and no key is met more
    than `limit` times a part.

    Args:
        records: (key, node) of the part, sorted by both.
        salt: another for each part.
        limit: more than `WINDOW`.
    """
    assert limit > WINDOW
    starts = starts_of_runs(records[:, 0])
    sizes = np.diff([*starts, len(records)])
    if not len(records) or sizes.max() <= limit:
        return records
    size, start = np.repeat(sizes, sizes), np.repeat(starts, sizes)
    place = np.arange(len(records)) - start
    chunk = place // limit
    before_next = (place % limit >= limit - WINDOW) & ((chunk + 1) * limit < size)
    opens = (place % limit == 0) & (chunk > 0)
    nodes = np.concatenate([records[:, 1], records[before_next, 1], records[start[opens], 1]])
    keys = np.concatenate([records[:, 0], records[before_next, 0], records[opens, 0]])
    chunks = np.concatenate([chunk, chunk[before_next] + 1, chunk[opens]]).astype(np.uint64)
    moved = mix(keys + mix(chunks * np.uint64(2**40) + np.uint64(salt)))
    return ordered(np.stack([np.where(chunks > 0, moved, keys), nodes], axis=1))


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
    """Reads single sets out of the files of many parts. Caches at most `memory` bytes."""

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
    """Tells whether two sorted sets without repetitions have a Jaccard similarity of at least `similarity`."""
    small, large = sorted((len(first), len(second)))
    if not large or small < similarity * large:
        return False
    both = np.concatenate([first, second])
    both.sort()
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared >= similarity * (small + large - shared)

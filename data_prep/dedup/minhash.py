"""Computes MinHash signatures and the keys of their bands, and chooses how many bands and rows there are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_prep.dedup.shingles import MULTIPLIER, Hashes
from data_prep.text.hashing import Wide, mix

_BATCH_SHINGLES = 32_768
_SEED = 20_130_417


class MinHash:
    """Signatures: for each of `size` permutations of the 32-bit numbers the smallest image of a set's members.

    The permutations are x -> a * x + b modulo 2**32 with odd a (multiply-add), which on hashed, hence random, members
    estimate the Jaccard similarity as well as independent random permutations do (see docs/deduplication.md).
    """

    def __init__(self, size: int) -> None:
        chance = np.random.Generator(np.random.PCG64(_SEED))
        self._factors = chance.integers(0, 2**31, size, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
        self._terms = chance.integers(0, 2**32, size, dtype=np.uint32)

    def signatures(self, hashes: Hashes, counts: npt.NDArray[np.int64]) -> Hashes:
        """(texts, size), for texts given as in `Shingler.shingles`; those without shingles get the largest number."""
        result = np.full((len(counts), len(self._factors)), 2**32 - 1, dtype=np.uint32)
        ends = np.cumsum(counts)
        texts = np.repeat(np.arange(len(counts)), counts)
        for start in range(0, len(hashes), _BATCH_SHINGLES):
            piece = hashes[start : start + _BATCH_SHINGLES]
            owners = texts[start : start + _BATCH_SHINGLES]
            present = np.arange(owners[0], owners[-1] + 1)
            present = present[counts[present] > 0]
            firsts = np.maximum(ends[present] - counts[present] - start, 0)
            images = np.empty_like(piece)
            smallest = np.empty((len(self._factors), len(present)), dtype=np.uint32)
            for number, (factor, term) in enumerate(zip(self._factors, self._terms, strict=True)):
                np.multiply(piece, factor, out=images)
                np.add(images, term, out=images)
                np.minimum.reduceat(images, firsts, out=smallest[number])
            result[present] = np.minimum(result[present], smallest.T)
        return result


def band_keys(signatures: Hashes, bands: int, rows: int) -> Wide:
    """(texts, bands): one 64-bit key for each band of `rows` hashes; the bands' keys are apart from each other."""
    keys = np.empty((len(signatures), bands), dtype=np.uint64)
    for band in range(bands):
        value = np.full(len(signatures), band + 1, dtype=np.uint64)
        for column in range(band * rows, (band + 1) * rows):
            value = mix(value * MULTIPLIER + signatures[:, column])
        keys[:, band] = value
    return keys


def choose_bands(
    similarity: float, misses: float, bands: int | None = None, rows: int | None = None, hashes: int = 128
) -> tuple[int, int]:
    """(bands, rows) for a similarity target; those given stay.

    Two texts of Jaccard similarity s meet in some band with probability 1 - (1 - s**rows)**bands (Leskovec, Rajaraman,
    Ullman, "Mining of Massive Datasets", 3.4). More rows mean fewer candidates below the target. Chosen are the most
    rows with which at most `hashes` hashes keep the misses at the target down to `misses`, then the fewest bands; one
    row where nothing keeps them down.
    """
    for row in [rows] if rows else range(hashes, 0, -1):
        most = max(1, hashes // row)
        enough = (band for band in range(1, most + 1) if (1 - similarity**row) ** band <= misses)
        band = bands or next(enough, most if row == 1 or rows else None)
        if band and (rows or row == 1 or (1 - similarity**row) ** band <= misses):
            return band, row
    raise AssertionError("one row always serves")

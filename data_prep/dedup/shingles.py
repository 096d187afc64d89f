"""Turns texts into sets of hashed shingles and into MinHash signatures.

Normal form: lower case; a word is a run of letters and digits (everything else separates), and every character of a
script written without spaces (Chinese, Japanese kana, Thai, Lao, Khmer, Burmese) is a word of its own. A shingle is
`length` words in a row (Broder 1997, "On the resemblance and containment of documents"); a text with fewer words, but
at least one, has one shingle, made of them all. Words are hashed to 64 bits by BLAKE2b, shingles by a polynomial of
their words' hashes, mixed (the finaliser of SplitMix64) and cut to 32 bits: two sets of a million shingles each then
share some 200 hashes by chance.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_prep.text.hashing import Wide, mix
from data_prep.text.words import NO_SPACES, WordTable

Hashes = npt.NDArray[np.uint32]

_WORD = re.compile(f"[{NO_SPACES}](?<![\\W_])|[^\\W_{NO_SPACES}]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_BATCH_SHINGLES = 32_768
_SEED = 20_130_417


class Shingler:
    """Hashed shingles of texts.

    Args:
        length: words (or characters) in a shingle.
        unit: `character`: shingles of the letters and digits themselves, with nothing in between.
    """

    def __init__(self, length: int, unit: Literal["word", "character"] = "word") -> None:
        self._length = length
        self._characters = unit == "character"
        self._table = WordTable(str.split, normal_words)

    def shingles(self, texts: Sequence[str]) -> tuple[Hashes, npt.NDArray[np.int64]]:
        """Hashes of all texts in a row, with repetitions, and how many there are of each text."""
        words, counts = self._hashed(texts)
        return join(words, counts, self._length)

    def sets(self, texts: Sequence[str]) -> list[Hashes]:
        """The sorted, different shingles of each text."""
        hashes, counts = self.shingles(texts)
        return [np.unique(piece) for piece in np.split(hashes, np.cumsum(counts)[:-1])] if len(counts) else []

    def _hashed(self, texts: Sequence[str]) -> tuple[Wide, npt.NDArray[np.int64]]:
        """Word hashes of all texts in a row, and how many words there are in each text."""
        if self._characters:
            codes = [np.frombuffer("".join(normal_words(text)).encode("utf-32-le"), dtype="<u4") for text in texts]
            counts = np.array([len(code) for code in codes], dtype=np.int64)
            return mix(np.concatenate([np.zeros(0, "<u4"), *codes]).astype(np.uint64) + np.uint64(1)), counts
        return self._table.hashes(texts)


def normal_words(text: str) -> list[str]:
    """The words of the normal form, in order."""
    return _WORD.findall(text.lower())


def join(words: Wide, counts: npt.NDArray[np.int64], length: int) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Shingle hashes from word hashes, text by text: see `Shingler.shingles`."""
    ends = np.cumsum(counts)
    owner = np.repeat(np.arange(len(counts)), counts)
    rolled = words[: max(0, len(words) - length + 1)].copy()
    for offset in range(1, length):
        rolled *= _MULTIPLIER
        rolled += words[offset : offset + len(rolled)]
    whole = owner[: len(rolled)] == owner[length - 1 : length - 1 + len(rolled)]
    result = (mix(rolled[whole]) >> np.uint64(32)).astype(np.uint32)
    found = np.maximum(counts - length + 1, 0)
    short = np.flatnonzero((counts > 0) & (counts < length))
    if len(short):
        # A text of few words: its one shingle; where it belongs is after the shingles of the texts before it.
        places = np.cumsum(found)[short]
        whole_texts = [_short(words[ends[text] - counts[text] : ends[text]]) for text in short]
        result = np.insert(result, places, np.array(whole_texts, dtype=np.uint32))
        found[short] = 1
    return result, found


def _short(words: Wide) -> int:
    value = len(words)
    for word in words.tolist():
        value = (value * int(_MULTIPLIER) + word) % 2**64
    return int(mix(np.array([value], dtype=np.uint64))[0] >> np.uint64(32))


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
            value = mix(value * _MULTIPLIER + signatures[:, column])
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

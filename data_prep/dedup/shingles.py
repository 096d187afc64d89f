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
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


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
        rolled *= MULTIPLIER
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
        value = (value * int(MULTIPLIER) + word) % 2**64
    return int(mix(np.array([value], dtype=np.uint64))[0] >> np.uint64(32))

"""Hashes the words of many texts at once, remembering the words met before.

Deduplication and decontamination split texts into words by rules of their own. Both need the hashes of all words as one
array, and most words of a text have been met before; `WordTable` serves both.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.text.hashing import Wide

Counts = npt.NDArray[np.int64]

# Scripts written without spaces: Thai, Lao, Burmese, Khmer, kana, Chinese; for a character class.
NO_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
# Longer stretches are rare, and remembering them would fill the memory with what never comes again.
_LONGEST_REMEMBERED = 48
_REMEMBERED = 2_000_000


def word_hash(word: str) -> int:
    """The first 64 bits of BLAKE2b of the word's UTF-8 bytes."""
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class WordTable:
    """Hashes of the words of texts. Texts are split into stretches, stretches into words.

    Args:
        stretches: splits a text into pieces that are looked up whole, such as at white space.
        words: splits a stretch into words; there may be none.
        hash_word: 64 bits of a word.
        limit: words or stretches remembered before the table starts anew; 2 million take 150 to 300 MB.
    """

    def __init__(
        self,
        stretches: Callable[[str], list[str]],
        words: Callable[[str], Iterable[str]],
        hash_word: Callable[[str], int] = word_hash,
        limit: int = _REMEMBERED,
    ) -> None:
        self._split, self._words_of, self._hash, self._limit = stretches, words, hash_word, limit
        self._numbers: dict[str, int] = {}  # stretch -> its number
        self._clear()

    def _clear(self) -> None:
        self._numbers.clear()
        # Stretch n has the hashes _words[_starts[n] : _starts[n + 1]].
        self._words = array("Q")
        self._starts = array("q", [0])

    def hashes(self, texts: Sequence[str]) -> tuple[Wide, Counts]:
        """(words,) hashes of the words of all texts in a row, and (texts,) the number of words of each."""
        if max(len(self._words), len(self._starts)) > self._limit:
            self._clear()
        found, stretches = array("q"), np.zeros(len(texts) + 1, dtype=np.int64)
        for index, text in enumerate(texts, start=1):
            pieces = self._split(text)
            numbers = list(map(self._numbers.get, pieces))
            if None in numbers:
                pairs = zip(pieces, numbers, strict=True)
                numbers = [self._add(piece) if known is None else known for piece, known in pairs]
            found.extend(numbers)  # type: ignore[arg-type]  # None is replaced above
            stretches[index] = len(pieces)
        return self._words_behind(_view(found, np.int64), np.cumsum(stretches))

    def _words_behind(self, numbers: Counts, edges: Counts) -> tuple[Wide, Counts]:
        """Hashes of the stretches with these numbers; text n has the stretches edges[n] … edges[n + 1] - 1."""
        words, starts = _view(self._words, np.uint64), _view(self._starts, np.int64)
        lengths = np.diff(starts)[numbers]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        # A stretch that begins at ends[i] in the answer begins at starts[numbers[i]] in _words.
        positions = np.arange(ends[-1]) + np.repeat(starts[numbers] - ends[:-1], lengths)
        return words[positions], np.diff(ends[edges])

    def _add(self, stretch: str) -> int:
        """Number of a stretch that was not met before, or was met a moment ago in the same text."""
        known = self._numbers.get(stretch)
        if known is not None:
            return known
        number = len(self._starts) - 1
        self._words.extend(map(self._hash, self._words_of(stretch)))
        self._starts.append(len(self._words))
        if len(stretch) <= _LONGEST_REMEMBERED:
            self._numbers[stretch] = number
        return number


def _view(values: array[int], dtype: type[np.generic]) -> npt.NDArray[Any]:
    """The values without a copy; numpy refuses an empty buffer."""
    return np.frombuffer(values, dtype) if len(values) else np.zeros(0, dtype)

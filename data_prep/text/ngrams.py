"""Hashes the words and n-grams of many texts at once.

Normal form: lower case, split at white space, everything but letters and digits taken out of what is between; so
`don't` is `dont`. Characters of scripts written without spaces (Chinese, Japanese kana, Thai, Lao, Khmer, Burmese) are
words of their own. The lowest bit of a word's hash says whether it is such a character.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from data_prep.text.hashing import Wide, mix
from data_prep.text.words import NO_SPACES, WordTable, word_hash

_CHARACTER = re.compile(f"[{NO_SPACES}]")
_SPLIT = re.compile(f"({_CHARACTER.pattern})")
_MARKS = re.compile(r"[\W_]+")
_ASCII_MARKS = {code: None for code in range(128) if not chr(code).isalnum() and not chr(code).isspace()}
_MULTIPLIER = 0x9E3779B97F4A7C15


def words_of(text: str) -> list[str]:
    """The words of the normal form, in order."""
    return _chunks(text) if text.isascii() else [word for chunk in text.split() for word in _words(chunk)]


def _chunks(text: str) -> list[str]:
    """Stretches without white space.

    Of plain ASCII text, which is most, they are the words: that is several times faster, and there are fewer of them to
    remember.
    """
    return text.lower().translate(_ASCII_MARKS).split() if text.isascii() else text.split()


def _words(chunk: str) -> list[str]:
    """Words of a stretch without white space."""
    if chunk.isascii():
        bare = chunk.lower().translate(_ASCII_MARKS)
        return [bare] if bare else []
    bare = _MARKS.sub("", chunk.lower())
    if not _CHARACTER.search(bare):
        return [bare] if bare else []
    return [word for word in _SPLIT.split(bare) if word]


def is_character(word: str) -> bool:
    """Tells whether a word is a single character of a script without spaces."""
    return len(word) == 1 and _CHARACTER.match(word) is not None


def word_table() -> WordTable:
    """Hashes of the words of the normal form; the lowest bit of each says whether the word is such a character."""
    return WordTable(_chunks, _words, _hash)


def _hash(word: str) -> int:
    return word_hash(word) & ~1 | is_character(word)


class Rolled:
    """Hashes of all n-grams of texts in a row, for several n, each made from the halves of it.

    Args:
        words: (words,) hashes.
        counts: (texts,) words of each text; an n-gram lies within one text.
    """

    def __init__(self, words: Wide, counts: npt.NDArray[np.int64]) -> None:
        self._ends = np.cumsum(counts)
        self._counts = counts
        self._powers: dict[int, Wide] = {1: words}
        self.has_characters = bool((words & np.uint64(1)).any())
        self._characters = np.concatenate([[0], np.cumsum(words & np.uint64(1), dtype=np.int64)])

    def valid(self, positions: npt.NDArray[np.int64], n: int, characters: bool) -> npt.NDArray[np.bool_]:
        """Marks the positions that begin an n-gram within one text.

        Args:
            positions: in the row of all words.
            n: words.
            characters: only those of which at least half are characters of scripts without spaces; else the others.
        """
        inside = positions + n <= self._ends[self.text_of(positions)]
        last = np.minimum(positions + n, len(self._characters) - 1)
        mostly = 2 * (self._characters[last] - self._characters[positions]) >= n
        found: npt.NDArray[np.bool_] = inside & (mostly == characters)
        return found

    def hashes(self, n: int) -> Wide:
        """(words - n + 1,) hash of the n words from each position on; those across a border of texts mean nothing."""
        return mix(self._raw(n))

    def _raw(self, n: int) -> Wide:
        if n not in self._powers:
            half = n // 2 if n & (n - 1) == 0 else 1 << (n.bit_length() - 1)
            first, second = self._raw(half), self._raw(n - half)
            size = max(0, len(self._powers[1]) - n + 1)
            factor = np.uint64(pow(_MULTIPLIER, n - half, 2**64))
            self._powers[n] = first[:size] * factor + second[half : half + size]
        return self._powers[n]

    def text_of(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Numbers of the texts that words at these positions belong to."""
        return np.searchsorted(self._ends, positions, side="right")

    def place_in_text(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Number of words of the same text before each position."""
        return positions - (self._ends - self._counts)[self.text_of(positions)]

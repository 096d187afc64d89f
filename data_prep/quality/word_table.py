"""Remembers the words of chunks met before, one table for each process.

Chunks come again and again: their words are looked up, and everything else is numpy over word numbers.
"""

from __future__ import annotations

from array import array
from functools import cache

import numpy as np
from numpy.typing import NDArray

from data_prep.quality.english_words import English, english
from data_prep.quality.punctuation import PUNCTUATION

Int8 = NDArray[np.int8]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]

_MOST_CHUNKS = 1 << 18  # some 60 MB; then the table starts anew
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_BASES = {"base": _BASE, "inverse": pow(_BASE, -1, 1 << 64)}


class Table(dict[str, int]):
    """Chunk -> its number; for each chunk its words, for each word what rules ask of it."""

    def __init__(self, rules: English) -> None:
        super().__init__()
        self.rules = rules
        self.words: list[str] = []
        self.word_of: dict[str, int] = {}
        self._flat = array("i")  # words of all chunks
        self._facts = {
            "first": array("i"),  # of a chunk: where its words begin in `_flat`
            "size": array("i"),  # of a chunk: how many words it has
            "altered": array("b"),  # of a chunk: whether neighbours may have a say
            "lengths": array("i"),  # of a word: characters
            "symbol": array("b"),  # of a word: nothing but punctuation
            "alphabetic": array("b"),  # of a word: some character is a letter
        }
        self._hashes = np.zeros(0, dtype=np.uint64)

    def __missing__(self, chunk: str) -> int:
        words, altered = self.rules.words(chunk)
        return self._add(chunk, words, altered)

    def number_of(self, key: str, words: list[str]) -> int:
        """Number of a chunk whose words are known."""
        number = self.get(key)
        return self._add(key, words, False) if number is None else number

    def fact(self, name: str) -> Int32 | Int8:
        """One column; it must be let go before the table grows."""
        column = self._facts[name]
        if column.typecode == "b":
            return np.frombuffer(column, dtype=np.int8)
        return np.frombuffer(column, dtype=np.int32)

    def words_of(self, chunks: Int32) -> Int32:
        """Numbers of the words of these chunks, in a row."""
        sizes = self.fact("size")[chunks].astype(np.int64)
        before = np.cumsum(sizes) - sizes
        places = np.repeat(self.fact("first")[chunks] - before, sizes)
        places += np.arange(len(places))
        words: Int32 = np.frombuffer(self._flat, dtype=np.int32)[places]
        return words

    def depends(self, chunk: int) -> bool:
        """Tells whether a chunk's words may depend on its neighbours."""
        return self._facts["altered"][chunk] != 0

    def chunk_words(self, chunk: int) -> list[str]:
        """Words of one chunk."""
        first = self._facts["first"][chunk]
        return [self.words[word] for word in self._flat[first : first + self._facts["size"][chunk]]]

    def _add(self, key: str, words: list[str], altered: bool) -> int:
        number = self[key] = len(self)
        facts = self._facts
        facts["first"].append(len(self._flat))
        facts["size"].append(len(words))
        facts["altered"].append(altered)
        for word in words:
            known = self.word_of.get(word)
            self._flat.append(self._add_word(word) if known is None else known)
        return number

    def _add_word(self, word: str) -> int:
        number = self.word_of[word] = len(self.words)
        letters = word.isalpha()
        self.words.append(word)
        self._facts["lengths"].append(len(word))
        self._facts["alphabetic"].append(letters or any(map(str.isalpha, word)))
        self._facts["symbol"].append(not letters and PUNCTUATION.issuperset(word))
        return number

    def hashes(self) -> UInt64:
        """Of every word: sum of value(character i) * _BASE**i, modulo 2**64."""
        known = len(self._hashes)
        if known < len(self.words):
            characters = "".join(self.words[known:]).encode("utf-32-le", "surrogatepass")
            lengths = self.fact("lengths")[known:].astype(np.int64)
            begins = np.cumsum(lengths) - lengths
            values = scattered(np.frombuffer(characters, dtype=np.uint32).astype(np.uint64))
            values *= powers("base", np.arange(len(values)) - np.repeat(begins, lengths))
            self._hashes = np.concatenate([self._hashes, np.add.reduceat(values, begins)])
        return self._hashes


def scattered(values: UInt64) -> UInt64:
    """Small numbers over all 64 bits (the finaliser of SplitMix64)."""
    values = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def powers(name: str, exponents: Int64) -> UInt64:
    """Powers of the base of the hashes, or of its inverse, modulo 2**64; exponents below 2**36."""
    result: UInt64 = _digit(name, 0)[exponents & 4095]
    most = int(exponents.max(initial=0))
    for level in (1, 2):
        if most >> 12 * level:
            result *= _digit(name, level)[exponents >> 12 * level & 4095]
    return result


@cache
def _digit(name: str, level: int) -> UInt64:
    """Powers of base ** (4096 ** level) from 0 to 4095."""
    row = np.full(4096, pow(_BASES[name], 4096**level, 1 << 64), dtype=np.uint64)
    row[0] = 1
    table: UInt64 = np.cumprod(row, dtype=np.uint64)
    return table


_tables: list[Table] = []


def current_table() -> Table:
    """The process's table; a text keeps the one that it began with."""
    if not _tables or len(_tables[0]) > _MOST_CHUNKS:
        _tables[:] = [Table(english())]
    return _tables[0]

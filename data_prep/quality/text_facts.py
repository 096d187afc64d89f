"""Computes facts of one text (words, lines, sentences) once for all quality rules.

A *word* is what spaCy's blank English pipeline makes of a chunk between blanks (data_prep/quality/english_words.py),
blanks themselves left out: `Don't (ever) stop.` is Do n't ( ever ) stop . So a punctuation mark is a word too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from data_prep.quality.english_words import is_punctuation
from data_prep.quality.word_table import Int8, Int32, Int64, Table, UInt64, current_table, powers

_CHUNK = re.compile(r"\S+")
_IRREGULAR = re.compile(r"  |[^\S ]")
_PIECES = re.compile(r"\S+|\s+")


class TextFacts:
    """One text and what was counted in it.

    Attributes:
        text: the text.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._table = current_table()

    @cached_property
    def lines(self) -> list[str]:
        """The text between line feeds."""
        return self.text.split("\n")

    @cached_property
    def chunks(self) -> list[str]:
        """The text between blanks."""
        return self.text.split()

    @cached_property
    def word_ids(self) -> Int32:
        """Number of each word; equal words of one text have equal numbers, other texts may have others."""
        numbers = chunk_numbers(self._table, self.text, self.chunks)
        return self._table.words_of(numbers)

    @property
    def words(self) -> list[str]:
        """The words, in order."""
        known = self._table.words
        return [known[number] for number in self.word_ids.tolist()]

    @cached_property
    def word_hashes(self) -> UInt64:
        """64-bit hash of each word, the same in every process; those of words in a row can be put together."""
        numbers = self.word_ids
        return self._table.hashes()[numbers]

    @cached_property
    def word_starts(self) -> Int64:
        """Characters of the words before each word, and of all at the end: one more than there are words."""
        starts = np.zeros(len(self.word_ids) + 1, dtype=np.int64)
        np.cumsum(self._of_words("lengths"), out=starts[1:])
        return starts

    def count(self, fact: str) -> int:
        """Number of words with `symbol` (nothing but punctuation) or `alphabetic` (some letter) true."""
        return int(np.count_nonzero(self._of_words(fact)))

    def has_word(self, word: str) -> bool:
        """Tells whether it is one of the words."""
        number = self._table.word_of.get(word)
        return number is not None and bool((self.word_ids == number).any())

    @cached_property
    def symbol_characters(self) -> int:
        """Characters of words that are nothing but punctuation."""
        return int(np.dot(self._of_words("lengths").astype(np.int64), self._of_words("symbol")))

    def _of_words(self, fact: str) -> Int32 | Int8:
        numbers = self.word_ids  # first: it lets the table grow
        return self._table.fact(fact)[numbers]

    @cached_property
    def _prefix_hashes(self) -> tuple[UInt64, UInt64]:
        starts = self.word_starts[:-1]
        sums = np.zeros(len(starts) + 1, dtype=np.uint64)
        np.cumsum(self.word_hashes * powers("base", starts), out=sums[1:])
        return sums, powers("inverse", starts)

    def ngram_hashes(self, n: int) -> UInt64:
        """Hash of every n words in a row, written without blanks.

        Equal strings have equal hashes, wherever they are cut into words. Different ones have different hashes but
        for a chance of some 2**-64 per pair: 10**-8 for all pairs of a text of a million words.
        """
        sums, inverse = self._prefix_hashes
        count = max(0, len(sums) - n)
        hashes: UInt64 = (sums[n:] - sums[:count]) * inverse[:count]
        return hashes


def chunk_numbers(table: Table, text: str, chunks: list[str]) -> Int32:
    """Numbers of the text's chunks in the table, each in its context."""
    numbers = np.fromiter(map(table.__getitem__, chunks), dtype=np.int32, count=len(chunks))
    altered = np.flatnonzero(table.fact("altered")[numbers])
    crossing = [place for place in altered.tolist() if _may_cross(table, chunks, place)]
    if crossing:
        spans = [match.span() for match in _CHUNK.finditer(text)]
        for place in crossing:
            numbers[place] = _in_context(table, text, chunks, spans, place)
    return numbers


def _may_cross(table: Table, chunks: list[str], place: int) -> bool:
    join = table.rules.may_join
    return (place > 0 and join(chunks[place - 1], chunks[place])) or (
        place + 1 < len(chunks) and join(chunks[place], chunks[place + 1])
    )


def _in_context(table: Table, text: str, chunks: list[str], spans: list[tuple[int, int]], place: int) -> int:
    """Number of a chunk whose words depend on chunks that a single space separates."""
    first = last = place
    reach = table.rules.reach
    while first > max(0, place - reach) and text[spans[first - 1][1] : spans[first][0]] == " ":
        first -= 1
    while last < min(len(chunks) - 1, place + reach) and text[spans[last][1] : spans[last + 1][0]] == " ":
        last += 1
    words = table.rules.in_context(chunks[first:place], chunks[place], chunks[place + 1 : last + 1])
    return table.number_of("\n".join([chunks[place], *words]), words)  # no chunk has a line end


def sentence_count(line: str, enough: int) -> int:
    """Sentences as spaCy's sentencizer counts them, at least one; counting stops at `enough`.

    A sentence ends after a word that is one of its end marks, before the next word that is no punctuation; a second
    blank in a row is such a word.
    """
    table = current_table()
    ends = table.rules.sentence_ends
    count, ended = 1, False
    for words in _chunks_and_blanks(table, line):
        if count >= enough:
            break
        for word in words:
            if word in ends:
                ended = True
            elif ended and not is_punctuation(word):
                count, ended = count + 1, False
    return count


def _chunks_and_blanks(table: Table, line: str) -> Iterator[list[str]]:
    """Words of each chunk, and blanks other than a single space as a word of their own."""
    chunks = line.split()
    resolved: list[int] = []
    place = 0
    for piece in (match[0] for match in _PIECES.finditer(line)) if _IRREGULAR.search(line) else chunks:
        if piece.isspace():
            if piece != " ":
                yield [piece]
            continue
        number = table[piece]
        if table.depends(number):
            resolved = resolved or chunk_numbers(table, line, chunks).tolist()
            number = resolved[place]
        place += 1
        yield table.chunk_words(number)

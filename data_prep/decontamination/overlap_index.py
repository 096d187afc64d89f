"""Builds the index of n-grams of evaluation items and finds them in texts.

Three kinds of n-gram: `ngram` words, `ngram_characters` characters of scripts without spaces, and whole passages too
short to have either, which are found by their first words. Equal hashes propose a place, the words themselves decide.

Example with n-grams of 3 words (a recipe takes 5 at least):

    item 0    "The cat sat down."          n-grams 0 "the cat sat" and 1 "cat sat down"
    item 1    "A cat sat down"             n-grams 2 "a cat sat" and 1: equal words have one number
    pairs     (0, 0) (1, 0) (1, 1) (2, 1)  of n-gram and item
    text      "Yes, the cat sat there."    n-gram 0 at word 1: the hashes are equal, so are the words; item 0 is touched
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from configs.common.files import atomic_path
from data_prep.decontamination.evaluation_sets import Item
from data_prep.text.hashing import Wide
from data_prep.text.ngrams import Rolled, word_table, words_of

# The smallest n that Brown et al. (arXiv:2005.14165, appendix C) use: shorter passages are found anywhere.
SHORTEST = 8
_BATCH_CHARACTERS = 2**20
_KINDS = 3

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lengths:
    """Words in an n-gram: of words, of characters, and at the start of short passages."""

    words: int
    characters: int

    @property
    def short(self) -> int:
        """Words that a passage must have at least."""
        return min(SHORTEST, self.words, self.characters)

    def of(self, kind: int) -> int:
        """Words that are hashed for an n-gram of this kind."""
        return (self.words, self.characters, self.short)[kind]


@dataclass(frozen=True)
class Index:
    """N-grams of the items.

    Attributes:
        hashes: per kind, (entries,) sorted.
        grams: per kind, (entries,) number of the n-gram behind each hash.
        passage, place, length: (n-grams,) where its words stand first.
        pairs: (pairs, 2) n-gram and item, sorted.
        passages: texts.
        sets, keys: (items,) set and key of each item.
    """

    lengths: Lengths
    hashes: list[Wide]
    grams: list[Ints]
    passage: Ints
    place: Ints
    length: Ints
    pairs: Ints
    passages: list[str]
    sets: list[str]
    keys: list[str]

    def words(self, gram: int) -> tuple[str, ...]:
        """The n-gram itself."""
        start = int(self.place[gram])
        return tuple(_words(self.passages[int(self.passage[gram])])[start : start + int(self.length[gram])])

    def items(self, gram: int) -> Ints:
        """Items that have the n-gram."""
        low, high = np.searchsorted(self.pairs[:, 0], [gram, gram + 1])
        return self.pairs[low:high, 1]


@lru_cache(maxsize=256)
def _words(passage: str) -> list[str]:
    return words_of(passage)


# ------------------------------------------------------------------------------------------------------------- building
def build_index(items: Iterable[Item], lengths: Lengths) -> Index:
    """The index of all items, in order."""
    sets: list[str] = []
    keys: list[str] = []
    passages: list[str] = []
    owners: list[int] = []
    for number, item in enumerate(items):
        sets.append(item.set)
        keys.append(item.key)
        passages += item.passages
        owners += [number] * len(item.passages)
    words, counts = word_table().hashes(passages)
    rolled = Rolled(words, counts)
    everything = np.arange(len(words), dtype=np.int64)
    found: list[tuple[Wide, Wide, Ints, Ints, Ints]] = []  # hash looked up, identity, passage, place, length
    covered = np.zeros(len(passages), dtype=bool)
    for kind in (0, 1):
        n = lengths.of(kind)
        positions = everything[rolled.valid(everything, n, bool(kind))] if len(words) else everything
        hashes = rolled.hashes(n)[positions]
        texts = rolled.text_of(positions)
        covered[texts] = True
        found.append((hashes, hashes, texts, rolled.place_in_text(positions), np.full(len(texts), n)))
    short = np.flatnonzero(~covered & (counts >= lengths.short))
    firsts = (np.cumsum(counts) - counts)[short]
    whole = [_identity(words_of(passages[number])) for number in short.tolist()]
    found.append(
        (rolled.hashes(lengths.short)[firsts], np.array(whole, np.uint64), short, np.zeros_like(short), counts[short])
    )
    return _assemble(lengths, found, np.array(owners, dtype=np.int64), passages, sets, keys)


def _identity(words: Sequence[str]) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _assemble(
    lengths: Lengths,
    found: Sequence[tuple[Wide, Wide, Ints, Ints, Ints]],
    owners: Ints,
    passages: list[str],
    sets: list[str],
    keys: list[str],
) -> Index:
    """Occurrences become n-grams: equal ones get one number."""
    hashes, grams, firsts, pairs = [], [], [], []
    base = 0
    for looked_up, identity, passage, place, length in found:
        _, first, number = np.unique(identity, return_index=True, return_inverse=True)
        firsts.append(np.stack([passage[first], place[first], length[first]]))
        pairs.append(np.unique(np.stack([number + base, owners[passage]], axis=1), axis=0))
        order = np.argsort(looked_up[first], kind="stable")
        hashes.append(looked_up[first][order])
        grams.append(order + base)
        base += len(first)
    passage, place, length = np.concatenate(firsts, axis=1).astype(np.int64)
    return Index(
        lengths, hashes, grams, passage, place, length, np.concatenate(pairs).astype(np.int64), passages, sets, keys
    )


def save_index(index: Index, arrays: Path, texts: Path) -> None:
    """Writes the two files that `load_index` reads."""
    content: dict[str, Any] = {f"hashes{kind}": index.hashes[kind] for kind in range(_KINDS)}
    content |= {f"grams{kind}": index.grams[kind] for kind in range(_KINDS)}
    content |= {name: getattr(index, name) for name in ("passage", "place", "length", "pairs")}
    content["lengths"] = np.array([index.lengths.words, index.lengths.characters])
    with atomic_path(arrays) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **content)
    table = pa.table(
        {
            "text": pa.array([index.passages], pa.list_(pa.string())),
            "set": pa.array([index.sets], pa.list_(pa.string())),
            "key": pa.array([index.keys], pa.list_(pa.string())),
        }
    )
    with atomic_path(texts) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=1)


def load_index(arrays: Path, texts: Path) -> Index:
    """Reads what `save_index` wrote."""
    with np.load(arrays) as stored:
        content = {name: stored[name] for name in stored.files}
    row = pq.read_table(texts, partitioning=None).to_pylist()[0]
    kinds = range(_KINDS)
    return Index(
        Lengths(*content["lengths"].tolist()),
        [content[f"hashes{kind}"] for kind in kinds],
        [content[f"grams{kind}"] for kind in kinds],
        passage=content["passage"],
        place=content["place"],
        length=content["length"],
        pairs=content["pairs"],
        passages=row["text"],
        sets=row["set"],
        keys=row["key"],
    )


# ------------------------------------------------------------------------------------------------------------ searching
class Finder:
    """Looks for the n-grams of an index in texts."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._table = word_table()
        # A table of the hashes' first bits answers for nearly all n-grams of a text that they are not in the index.
        entries = max(len(hashes) for hashes in index.hashes)
        bits = min(27, max(12, (64 * max(1, entries)).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._tables = []
        for hashes in index.hashes:
            table = np.zeros(2**bits, dtype=bool)
            table[hashes >> self._shift] = True
            self._tables.append(table)

    def __call__(self, texts: Sequence[str]) -> Iterator[tuple[int, list[int]]]:
        """(number of the text, sorted n-grams in it) of those texts that have any."""
        rolled = Rolled(*self._table.hashes(texts))
        hits: dict[int, set[int]] = {}
        words: tuple[int, list[str]] = (-1, [])
        for kind in range(_KINDS):
            if not len(self._index.hashes[kind]) or (kind == 1 and not rolled.has_characters):
                continue
            for text, place, entries in self._candidates(rolled, kind):
                known = hits.setdefault(text, set())
                for gram in self._index.grams[kind][entries].tolist():
                    if gram in known:
                        continue
                    if words[0] != text:
                        words = text, words_of(texts[text])
                    wanted = self._index.words(gram)
                    if tuple(words[1][place : place + len(wanted)]) == wanted:
                        known.add(gram)
        for text in sorted(hits):
            if hits[text]:
                yield text, sorted(hits[text])

    def _candidates(self, rolled: Rolled, kind: int) -> Iterator[tuple[int, int, slice]]:
        """(text, word in it, entries of the index) where hashes are equal, in order."""
        n, known = self._index.lengths.of(kind), self._index.hashes[kind]
        hashes = rolled.hashes(n)
        positions = np.flatnonzero(self._tables[kind][hashes >> self._shift])
        # The table passes few positions on; the index has the hash of some of these: its entries low … high - 1.
        low = np.searchsorted(known, hashes[positions])
        high = np.searchsorted(known, hashes[positions], side="right")
        positions, low, high = (array[high > low] for array in (positions, low, high))
        if kind < 2:  # a short passage may go on anywhere, so only the words can tell
            fits = rolled.valid(positions, n, bool(kind))
            positions, low, high = (array[fits] for array in (positions, low, high))
        texts, places = rolled.text_of(positions), rolled.place_in_text(positions)
        for text, place, first, last in zip(texts.tolist(), places.tolist(), low.tolist(), high.tolist(), strict=True):
            yield text, place, slice(first, last)


def batches(texts: Iterable[tuple[Any, str]]) -> Iterator[tuple[list[Any], list[str]]]:
    """Stretches of some million characters, with what belongs to each text."""
    keys: list[Any] = []
    batch: list[str] = []
    size = 0
    for key, text in texts:
        keys.append(key)
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield keys, batch
            keys, batch, size = [], [], 0
    if batch:
        yield keys, batch

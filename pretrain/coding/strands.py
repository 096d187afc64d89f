"""Holds all tokens of a corpus in one line, and knows which of them are coded already.

A *strand* is the token stream of one source and split: its documents one after the other, each with its
end-of-document token. The *place* of a token is its number in the line of all strands. Free of torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.tokens.shards import DataManifest, SourceShards, TokenStream

Places = NDArray[np.int64]
TRAIN, VALIDATION = "train", "validation"
_READ = 2**20  # tokens at a time


@dataclass(frozen=True)
class Strand:
    """Where the tokens of one source and split lie in the line."""

    split: str
    name: str
    start: int
    length: int
    documents: int
    bytes: int  # UTF-8 bytes of the documents' text


class Strands:
    """The tokens of all strands, and which of them are known to whoever decodes."""

    def __init__(self, strands: Sequence[Strand], vocab_size: int, eod: int) -> None:
        self.strands, self.vocab_size, self.eod = list(strands), vocab_size, eod
        total = sum(strand.length for strand in strands)
        self.tokens = np.zeros(total, dtype=np.int32)
        self.known = np.zeros(total, dtype=np.bool_)
        self.counts = np.zeros(vocab_size, dtype=np.int64)  # of the known tokens, by id
        self._train = {strand.name: strand for strand in strands if strand.split == TRAIN}

    @classmethod
    def of(cls, data: DataManifest) -> Strands:
        """The strands of prepared data, with nothing read: the training split, then the validation split."""
        found, start = [], 0
        for split, sources in ((TRAIN, data.train), (VALIDATION, data.validation)):
            for source in sources:
                length = TokenStream(source.prefixes, source.name).length
                found.append(Strand(split, source.name, start, length, source.documents, source.bytes))
                start += length
        return cls(found, data.vocab_size, data.eod_id)

    def read(self, data: DataManifest) -> None:
        """Fills in the tokens; raises `ValueError` for an id outside the vocabulary."""
        sources: list[SourceShards] = [*data.train, *data.validation]
        for strand, source in zip(self.strands, sources, strict=True):
            stream = TokenStream(source.prefixes, source.name, data.vocab_size)
            for first in range(0, strand.length, _READ):
                count = min(_READ, strand.length - first)
                self.tokens[strand.start + first : strand.start + first + count] = stream.read(first, count)
            stream.close()

    def learn(self, places: Places, symbols: NDArray[np.int32]) -> None:
        """Notes tokens that both sides know from now on."""
        self.tokens[places], self.known[places] = symbols, True
        np.add.at(self.counts, symbols, 1)

    def start_of(self, name: str, window: int, context: int) -> int:
        """The place of the first input of a window of a training source."""
        return self._train[name].start + window * context

    def documents(self, strand: Strand) -> Iterator[NDArray[np.int32]]:
        """The tokens of each document, without its end-of-document token.

        Raises:
            ValueError: where the strand does not end with one.
        """
        tokens = self.tokens[strand.start : strand.start + strand.length]
        ends = np.flatnonzero(tokens == self.eod)
        if strand.length and (not len(ends) or ends[-1] != strand.length - 1):
            raise ValueError(f"the {strand.split} split of `{strand.name}` does not end with an end-of-document token")
        begin = 0
        for end in ends.tolist():
            yield tokens[begin:end]
            begin = end + 1

    def digest(self) -> str:
        """SHA-256 of all tokens, 4 bytes each, little-endian."""
        return hashlib.sha256(self.tokens.astype("<i4").tobytes()).hexdigest()


class TokenFiles:
    """The `.bin` files that decoded tokens are written to, one for each strand."""

    def __init__(self, strands: Strands, files: Sequence[Path], dtype: np.dtype[np.generic]) -> None:
        """Opens files of the strands' lengths."""
        self._strands = strands
        pairs = zip(strands.strands, files, strict=True)
        self._maps = [np.memmap(file, dtype, mode="r+") if one.length else np.zeros(0, dtype) for one, file in pairs]
        self._starts = np.array([strand.start for strand in strands.strands])

    def write(self, starts: Places, width: int) -> None:
        """Writes the tokens of rows, each from its place on; a row lies in one strand."""
        for start in starts.tolist():
            index = int(np.searchsorted(self._starts, start, side="right")) - 1
            while not self._strands.strands[index].length:  # an empty strand begins where the next one does
                index -= 1
            begin = start - int(self._starts[index])
            self._maps[index][begin : begin + width] = self._strands.tokens[start : start + width]

"""Codes the tokens of windows side by side, one position after the other, by what a model says of each.

Encoder and decoder walk the same windows in the same order with the same calls: the cached step of
`pretrain.generation.decode`, which also generates text. What one side writes by some logits the other side reads by the
same ones, to the bit. Only tokens that are not known yet are coded; a token that is both the last target of one window
and the first input of the next one is coded where it is met first.

The first input of a window has nothing before it that the model could predict it from. It is coded by how often each
token was met so far.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.coding.entropy import DamagedStream, Encoder, SymbolDecoder, Symbols, probabilities
from pretrain.coding.strands import Places, Strands
from pretrain.generation.decode import Decoder
from pretrain.model.transformer import Transformer

Logits = NDArray[np.floating]  # (R, V)
# Kinds of what is coded.
FIRST, BATCHES, REST, CHECKSUMS = "first tokens of windows", "batches", "the rest", "checksums"
_REST_ROWS = 64  # windows side by side where no batch says how many
_CACHE_NUMBERS = 2**26  # keys and values of all rows, at most
_ABSENT = 0.5  # what a token counts for before it is met (Krichevsky and Trofimov 1981)
_CHECKED_WALKS = 16  # a checksum is coded behind so many walks
_CHECKSUM_BITS = 16


class Coder(Protocol):
    """One of the two sides."""

    def code(self, expected: Symbols, logits: Logits, kind: str) -> Symbols:
        """Codes a symbol by each row of logits (R, V); returns them (R,), which are `expected` where it is known."""


class Writing:
    """The encoder's side: the tokens are there."""

    def __init__(self, vocab_size: int) -> None:
        self._encoder = Encoder(vocab_size)
        self.symbols: Counter[str] = Counter()  # coded so far, by kind
        self.bits: Counter[str] = Counter()  # -log2 p of them

    def code(self, expected: Symbols, logits: Logits, kind: str) -> Symbols:
        self._encoder.encode(expected, logits)
        shares = probabilities(logits, self._encoder.vocab_size)
        chosen = shares[np.arange(len(expected)), expected] / shares.sum(axis=1)
        self.symbols[kind] += len(expected)
        self.bits[kind] += float(-np.log2(np.maximum(chosen, 2.0**-24)).sum())  # type: ignore[assignment]
        return expected

    def stream(self) -> bytes:
        """All that was written."""
        return self._encoder.stream()


class Reading:
    """The decoder's side: the stream is there."""

    def __init__(self, stream: bytes, vocab_size: int) -> None:
        self._decoder = SymbolDecoder(stream, vocab_size)

    def code(self, expected: Symbols, logits: Logits, kind: str) -> Symbols:
        return self._decoder.decode(logits)

    def finish(self) -> None:
        """Raises `DamagedStream` where something is left to read."""
        self._decoder.finish()


class Walk:
    """Goes through windows, and codes what is not known of them."""

    def __init__(self, strands: Strands, coder: Coder, masks_documents: bool) -> None:
        """`masks_documents`: the model is trained so that documents in a window do not see each other."""
        self.strands, self._coder, self._masks = strands, coder, masks_documents
        self.kind = BATCHES  # of what the model codes
        self._walks, self._checksum = 0, 0

    @torch.no_grad()
    def __call__(self, model: Transformer, starts: Places, width: int) -> None:
        """Codes the tokens at `starts[r]` … `starts[r] + width` of each row r that are not known.

        Args:
            model: in eval mode, with fp32 weights, on the CPU.
            starts: (R,) places of first inputs.
            width: targets of each row, up to the model's context.

        Raises:
            DamagedStream: the stream does not belong to these weights.
            ValueError: the model gives NaN.
        """
        places = starts[:, None] + np.arange(width + 1)
        unknown = ~self.strands.known[places]
        if not unknown.any():
            return
        if unknown[:, 0].any():
            self._code_first(places[:, 0])
        last = int(np.flatnonzero(unknown.any(axis=0))[-1])  # nothing behind it is to be coded
        if last:
            self._code_by_model(model, places[:, : last + 1])
        self._check(places)

    def _code_first(self, places: Places) -> None:
        new = self._new(places)
        logits = np.log(self.strands.counts + _ABSENT)
        self._code(places[new], np.repeat(logits[None], len(new), axis=0), FIRST)

    def _code_by_model(self, model: Transformer, places: Places) -> None:
        config, rows = model.config, len(places)
        shape = (config.num_layers, rows, config.kv_heads, places.shape[1] - 1, config.head_width)
        keys, values = torch.zeros(shape), torch.zeros(shape)
        step, lengths = Decoder(model), np.zeros(rows, dtype=np.int64)
        for column in range(places.shape[1] - 1):
            tokens = self.strands.tokens[places[:, column]].astype(np.int64)
            if self._masks:  # as an input, an end-of-document token begins the next document
                lengths[tokens == self.strands.eod] = 0
            even = bool((lengths == column).all())
            found = step(
                torch.from_numpy(tokens),
                torch.from_numpy(lengths.copy()),
                keys[:, :, :, : column + 1],
                values[:, :, :, : column + 1],
                column if even else None,
            )
            lengths += 1
            new = self._new(places[:, column + 1])
            if len(new):
                self._code(places[new, column + 1], found.float().numpy()[new], self.kind)

    def _new(self, places: Places) -> Places:
        """Rows whose token is not known; of several with one place, the first."""
        _, first = np.unique(places, return_index=True)
        first.sort()
        found: Places = first[~self.strands.known[places[first]]]
        return found

    def _code(self, places: Places, logits: Logits, kind: str) -> None:
        symbols = self._coder.code(self.strands.tokens[places], logits, kind)
        self.strands.learn(places, symbols)

    def _check(self, places: Places) -> None:
        """Codes a checksum now and then: a decoder whose model computes otherwise must not train on for an hour."""
        self._walks += 1
        self._checksum = zlib.crc32(self.strands.tokens[places].astype("<i4").tobytes(), self._checksum)
        if self._walks % _CHECKED_WALKS:
            return
        size, left, digits = self.strands.vocab_size, self._checksum % 2**_CHECKSUM_BITS, []
        for _ in range(math.ceil(_CHECKSUM_BITS / math.log2(size))):
            left, digit = divmod(left, size)
            digits.append(digit)
        expected = np.array(digits, dtype=np.int32)
        if (self._coder.code(expected, np.zeros((len(digits), size)), CHECKSUMS) != expected).any():
            raise DamagedStream(
                f"decoding went wrong within the last {_CHECKED_WALKS} batches: the model computes otherwise than it "
                "did when the file was written"
            )


def rest(strands: Strands, context: int, rows: int) -> Iterator[tuple[Places, int]]:
    """What training leaves: (first inputs of windows, their width), up to `rows` at a time, and the end of each strand.

    What is known is asked when a group is given out.
    """
    for strand in strands.strands:
        whole = max(0, strand.length - 1) // context
        starts = strand.start + context * np.arange(whole)
        known = strands.known[strand.start : strand.start + whole * context + 1]
        left = starts[[not known[w * context : (w + 1) * context + 1].all() for w in range(whole)]]
        yield from ((left[first : first + rows], context) for first in range(0, len(left), rows))
        end = strand.start + whole * context
        if (width := strand.length - 1 - whole * context) >= 0:
            yield np.array([end], dtype=np.int64), width


def rest_rows(model: Transformer, context: int) -> int:
    """How many windows are coded side by side after training: as many as the cache has room for."""
    config = model.config
    numbers = 2 * config.num_layers * config.kv_heads * config.head_width * context
    return max(1, min(_REST_ROWS, _CACHE_NUMBERS // numbers))

"""Codes token ids by a model's predictions, and reads them back.

The ids are cut into streams of near-equal length that advance together, and all are coded into one stream of bytes,
step by step and row by row. The first streams are longer by one token where the ids do not divide evenly.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.codec.rows import Logits, Rows
from pretrain.coding.entropy import DamagedStream, Encoder, SymbolDecoder
from pretrain.model.transformer import Transformer

# Fewer streams are slower, more of them cost bits: each begins without a context. Measured in docs/compression.md.
_CONTEXTS_OF_A_STREAM = 2
_USUAL_MOST = 64
_CHECKED_TOKENS = 2**15  # between two checks

Ids = NDArray[np.int32]
Report = Callable[[float], None]  # told the number of tokens done


class OtherTokens(ValueError):
    """Decoding gave other tokens than were coded; `place` is how many were asked for by then."""

    def __init__(self, place: int) -> None:
        super().__init__(f"other tokens than were coded, at token {place:,} at the latest")
        self.place = place


@dataclass(frozen=True)
class Layout:
    """How ids lie in streams."""

    tokens: int
    streams: int
    check_steps: int  # steps between two checks

    @classmethod
    def of(cls, tokens: int, streams: int) -> Layout:
        """The layout that an encoder takes."""
        return cls(tokens, streams, max(1, _CHECKED_TOKENS // streams))

    @property
    def steps(self) -> int:
        """Steps until all streams are at their end."""
        return -(-self.tokens // self.streams)

    def rows(self, step: int) -> int:
        """Streams that have a token at this step: the first ones."""
        return self.streams if (step + 1) * self.streams <= self.tokens else self.tokens % self.streams

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each stream, (streams,)."""
        base, longer = divmod(self.tokens, self.streams)
        return base + (np.arange(self.streams) < longer)

    def table(self, ids: Ids) -> Ids:
        """Lays ids out as (streams, steps); 0 where a stream has ended."""
        table: Ids = np.zeros((self.streams, self.steps), dtype=np.int32)
        table[self.inside] = ids
        return table

    def ids(self, table: Ids) -> Ids:
        """The inverse of `table`."""
        found: Ids = table[self.inside]
        return found

    @property
    def inside(self) -> NDArray[np.bool_]:
        """Mask (streams, steps) of the places that have a token."""
        inside: NDArray[np.bool_] = np.arange(self.steps) < self.lengths[:, None]
        return inside


@dataclass(frozen=True)
class Code:
    """Coded ids.

    Attributes:
        stream: the bytes.
        checks: CRC-32 of the ids up to each check, in the order of coding.
        bits: (tokens,) the ideal length of each id, -log2 p, where it was asked for.
    """

    stream: bytes
    checks: list[int]
    bits: NDArray[np.float64] | None = None


def usual_streams(tokens: int, context: int) -> int:
    """Returns how many streams suit a text: 1 for a short one, and each at least some contexts long."""
    return max(1, min(_USUAL_MOST, tokens // (_CONTEXTS_OF_A_STREAM * context)))


def encode(
    model: Transformer,
    begin: int,
    vocab_size: int,
    ids: Ids,
    layout: Layout,
    report: Report | None = None,
    measure: bool = False,
) -> Code:
    """Codes ids by the model; `begin` is the id that every stream is conditioned on.

    Raises:
        ValueError: when the model's logits are NaN or infinite.
    """
    table, coder = layout.table(ids), Encoder(vocab_size)
    bits = np.zeros(table.shape) if measure else None
    walk = _Walk(model, begin, layout, report)
    for step in range(layout.steps):
        rows = layout.rows(step)
        symbols = table[:rows, step]
        logits = walk.logits[:rows]
        coder.encode(symbols, logits)
        if bits is not None:
            bits[:rows, step] = _lengths(logits[:, :vocab_size], symbols)
        walk.advance(step, symbols)
    return Code(coder.stream(), walk.checks, None if bits is None else bits[layout.inside])


def decode(
    model: Transformer,
    begin: int,
    vocab_size: int,
    code: Code,
    layout: Layout,
    report: Report | None = None,
) -> Ids:
    """Returns the ids of a code.

    Raises:
        OtherTokens: when the probabilities are not those of the encoder, at the first check that tells.
    """
    table: Ids = np.zeros((layout.streams, layout.steps), dtype=np.int32)
    walk = _Walk(model, begin, layout, report)
    try:
        coder = SymbolDecoder(code.stream, vocab_size)
        for step in range(layout.steps):
            symbols = coder.decode(walk.logits[: layout.rows(step)])
            table[: len(symbols), step] = symbols
            walk.advance(step, symbols)
            if walk.checks != code.checks[: len(walk.checks)]:
                raise OtherTokens(walk.done)
        coder.finish()
    except DamagedStream as error:
        raise OtherTokens(walk.done) from error
    return layout.ids(table)


class _Walk:
    """The steps that encoder and decoder share."""

    def __init__(self, model: Transformer, begin: int, layout: Layout, report: Report | None) -> None:
        self._layout, self._report = layout, report
        self._rows = Rows(model, layout.streams, layout.steps)
        self.logits: Logits = self._rows.feed(np.full(layout.streams, begin))
        self.checks: list[int] = []
        self.done = self._crc = 0

    def advance(self, step: int, symbols: Ids) -> None:
        """Takes the symbols of a step, and computes the logits of the next one if there is any."""
        self._crc = zlib.crc32(symbols.astype("<i4").tobytes(), self._crc)
        if (step + 1) % self._layout.check_steps == 0:
            self.checks.append(self._crc)
        self.done += len(symbols)
        if step + 1 < self._layout.steps:
            self.logits = self._rows.feed(symbols)
        if self._report is not None:
            self._report(self.done)


def _lengths(logits: Logits, symbols: Ids) -> NDArray[np.float64]:
    """-log2 of the probabilities of symbols (R,), from logits (R, V)."""
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    chosen = values[np.arange(len(symbols)), symbols]
    lengths: NDArray[np.float64] = (np.log(np.exp(values).sum(axis=1)) - chosen) / math.log(2)
    return lengths

"""Writes symbols in as many bits as a model gives them, and reads them back: a range coder over rows of logits.

The coder itself is the library `constriction` (Bamler 2022, arXiv:2201.01741): range coding with 32-bit words and
probabilities of 24 bits, which it makes of one row at a time and only as far as a symbol needs. Every symbol of the
vocabulary gets at least 2**-24, so that whatever stands in a text can be coded. The cost beside -log2 p: at most a word
for each stream, and V * 2**-24 of the probability for the symbols that the model excludes.

What is read back depends on the logits to their last bit: encoder and decoder must compute them by the same calls, in
batches of the same shape, on the same kind of machine. Free of torch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Symbols = NDArray[np.int32]  # (R,)
_WORD = np.dtype("<u4")


class DamagedStream(ValueError):
    """What was read cannot be what the encoder wrote for these logits."""


class Encoder:
    """Appends symbols to one stream."""

    def __init__(self, vocab_size: int) -> None:
        """`vocab_size`: symbols are 0 to `vocab_size` - 1; columns of logits behind them are padding."""
        self.vocab_size = vocab_size
        self._library = _library(vocab_size)
        self._coder = self._library.range_encoder()

    def encode(self, symbols: NDArray[Any], logits: NDArray[Any]) -> None:
        """Codes a symbol by each row of logits, in the order of the rows.

        Args:
            symbols: (R,) integers.
            logits: (R, V) fp32 or fp64 with V >= `vocab_size`: natural logarithms, up to a constant for each row.

        Raises:
            ValueError: for a symbol outside the vocabulary, or logits that are no distribution.
        """
        symbols = np.ascontiguousarray(symbols, dtype=np.int32)
        if len(symbols) != len(logits):
            raise ValueError(f"{len(symbols)} symbols cannot be coded by {len(logits)} rows of logits")
        if not len(symbols):
            return
        if symbols.min() < 0 or symbols.max() >= self.vocab_size:
            outside = symbols[(symbols < 0) | (symbols >= self.vocab_size)][0]
            raise ValueError(f"symbol {outside} cannot be coded: the vocabulary has the ids 0 to {self.vocab_size - 1}")
        self._coder.encode(symbols, self._library.family, probabilities(logits, self.vocab_size))

    def stream(self) -> bytes:
        """All that was coded so far, a multiple of 4 bytes; more can be coded behind it."""
        words: NDArray[np.uint32] = self._coder.get_compressed()
        return words.astype(_WORD).tobytes()


class SymbolDecoder:
    """Reads the symbols of a stream, in the order in which they were coded."""

    def __init__(self, stream: bytes, vocab_size: int) -> None:
        """Raises `DamagedStream` for a length that no stream has."""
        if len(stream) % _WORD.itemsize:
            raise DamagedStream(f"the stream is damaged: {len(stream)} bytes are no whole number of 4-byte words")
        self.vocab_size = vocab_size
        self._library = _library(vocab_size)
        self._coder = self._library.range_decoder(np.frombuffer(stream, dtype=_WORD).astype(np.uint32))

    def decode(self, logits: NDArray[Any]) -> Symbols:
        """The next symbols (R,), one for each row; `logits` (R, V) as they were when these symbols were coded.

        Most damage to a stream cannot be seen here: other symbols come out. Compare a hash of the whole.

        Raises:
            DamagedStream: the stream was not coded by these logits.
            ValueError: for logits that are no distribution.
        """
        if not len(logits):
            return np.zeros(0, dtype=np.int32)
        try:
            found: Symbols = self._coder.decode(self._library.family, probabilities(logits, self.vocab_size))
        except AssertionError as error:
            raise DamagedStream("the stream is damaged, or was coded by a model that computes otherwise") from error
        return found

    def finish(self) -> None:
        """Raises `DamagedStream` where symbols are left that nobody asked for."""
        if not self._coder.maybe_exhausted():
            raise DamagedStream("the stream goes on behind its last symbol: it is damaged, or of another text")


def probabilities(logits: NDArray[Any], vocab_size: int) -> NDArray[np.float64]:
    """(R, vocab_size): what each symbol is worth beside the row's best one. A function of each row's bytes alone.

    Minus infinity is allowed, and is coded at 24 bits.

    Raises:
        ValueError: where a row holds NaN or infinity, no finite value, or too few columns.
    """
    if logits.ndim != 2 or logits.shape[1] < vocab_size:
        raise ValueError(f"logits of the shape {logits.shape} cannot code the ids 0 to {vocab_size - 1}")
    if logits.dtype not in (np.float32, np.float64):
        raise ValueError(f"logits are coded in float32 or float64, not in {logits.dtype}: other types round them")
    values = logits[:, :vocab_size].astype(np.float64)  # a copy, contiguous
    best = values.max(axis=1, keepdims=True)  # NaN where there is one
    if not np.isfinite(best).all():
        row = int(np.flatnonzero(~np.isfinite(best[:, 0]))[0])
        raise ValueError(
            f"row {row} of the logits holds {best[row, 0]} where its largest value should be: the model's weights or "
            "its arithmetic are broken, and nothing can be coded by it"
        )
    values -= best
    return np.exp(values, out=values)


class _Library(NamedTuple):
    range_encoder: Any
    range_decoder: Any
    family: Any  # categorical distributions, one for each row


def _library(vocab_size: int) -> _Library:
    """What is used of the library; raises `ValueError` where it is missing or cannot code such a vocabulary."""
    if not 2 <= vocab_size < 2**22:
        raise ValueError(f"a vocabulary of {vocab_size} symbols cannot be coded: it must have from 2 to {2**22 - 1}")
    try:
        from constriction import stream  # optional, and nobody else needs it
    except ModuleNotFoundError as error:
        raise ValueError(
            "coding needs the package constriction, which is not installed; run `pip install 'gpt-replica[codec]'`"
        ) from error
    family = stream.model.Categorical(perfect=False)
    return _Library(stream.queue.RangeEncoder, stream.queue.RangeDecoder, family)

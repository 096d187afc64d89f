"""Reads a window of a source: tokens, their targets, and the documents they are from."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_prep.tokens.shards import DocumentSpan, TokenStream
from pretrain.batches.packing import Packing

Row = NDArray[np.int64]  # (T,)


class Windows(Protocol):
    """The windows of one source, by number."""

    def read(self, window: int, tokens: Row, targets: Row) -> list[int]:
        """Fills a row; returns the tokens of its pieces, in order. What they leave is padding, and stays as it is."""

    def documents(self, window: int) -> list[DocumentSpan]:
        """The documents that a window is from, in order."""

    def kinds(self, window: int) -> NDArray[np.uint8]:
        """The kind of each target, without padding; only shards of conversations have them."""


class CutWindows:
    """The stream cut every `context` tokens. The first token is input only, and documents are cut as it comes."""

    def __init__(self, stream: TokenStream, context: int) -> None:
        self._stream, self._context = stream, context

    def read(self, window: int, tokens: Row, targets: Row) -> list[int]:
        found = self._stream.read(window * self._context, self._context + 1)
        tokens[:], targets[:] = found[:-1], found[1:]
        return [self._context]

    def documents(self, window: int) -> list[DocumentSpan]:
        return self._stream.documents(window * self._context, self._context + 1)

    def kinds(self, window: int) -> NDArray[np.uint8]:
        return self._stream.kinds(window * self._context + 1, self._context)


class PackedWindows:
    """Pieces of documents side by side. Each is predicted from the token before it on: `eod`, or its own last part."""

    def __init__(self, stream: TokenStream, packing: Packing, eod: int) -> None:
        self._stream, self._packing, self._eod = stream, packing, eod

    def read(self, window: int, tokens: Row, targets: Row) -> list[int]:
        pieces = self._packing.pieces(window)
        begin = 0
        for start, length in pieces:
            end, before = begin + length, min(start, 1)  # nothing stands before the stream's first document
            found = self._stream.read(start - before, length + before)
            targets[begin:end] = found[before:]
            tokens[begin] = found[0] if before else self._eod
            tokens[begin + 1 : end] = found[before:-1]
            begin = end
        return [length for _, length in pieces]

    def documents(self, window: int) -> list[DocumentSpan]:
        return [span for piece in self._packing.pieces(window) for span in self._stream.documents(*piece)]

    def kinds(self, window: int) -> NDArray[np.uint8]:
        return np.concatenate([self._stream.kinds(*piece) for piece in self._packing.pieces(window)])

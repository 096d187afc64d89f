"""Hashes all windows of bytes of a text and chooses anchors among them by winnowing. Vectorised with numpy.

Winnowing (Schleimer, Wilkerson, Aiken 2003): of the hashes of all `gram`-byte strings in a window of `size` bytes the
smallest one, the last of equal ones, is the window's anchor. Equal windows have equal anchors, and neighbouring windows
mostly share theirs. Hashes are polynomials modulo 2**64 over a random number for each byte, mixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.text.hashing import Wide, mix

Positions = npt.NDArray[np.int64]

BATCH_BYTES = 2**18  # bytes that are worked on at once
_PLACE_BITS = 24
_SEED = 20_210_714


@dataclass(frozen=True)
class ByteBatch:
    """Stretches of texts, one after the other.

    A text longer than a batch is cut into stretches that overlap by a window.

    Attributes:
        data: their bytes.
        numbers: document of each stretch.
        offsets: where in its document each stretch begins.
        edges: where in `data` each begins, and the end of the last.
    """

    data: bytes
    numbers: Positions
    offsets: Positions
    edges: Positions


def byte_batches(texts: Iterable[tuple[int, bytes]], size: int) -> Iterator[ByteBatch]:
    """Batches of (document, bytes). Every window of `size` bytes lies in one of them; shorter texts are left out."""
    pieces: list[tuple[int, int, bytes]] = []
    held = 0
    for number, data in texts:
        for offset in range(0, max(0, len(data) - size + 1), BATCH_BYTES):
            piece = data[offset : offset + BATCH_BYTES + size - 1]
            pieces.append((number, offset, piece))
            held += len(piece)
            if held >= BATCH_BYTES:
                yield _batch(pieces)
                pieces, held = [], 0
    if pieces:
        yield _batch(pieces)


def _batch(pieces: list[tuple[int, int, bytes]]) -> ByteBatch:
    numbers, offsets, contents = zip(*pieces, strict=True)
    edges = np.cumsum([0, *map(len, contents)])
    return ByteBatch(b"".join(contents), np.array(numbers), np.array(offsets), edges)


class ByteWindows:
    """Hashes of windows of `size` bytes, with anchors of half that length.

    Args:
        size: at least 2.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.gram = size // 2
        length = 2 * (BATCH_BYTES + size)
        chance = np.random.Generator(np.random.PCG64(_SEED))
        self._tables, self._powers, self._inverses = [], [], []
        for _ in range(2):
            self._tables.append(chance.integers(0, 2**64, 256, dtype=np.uint64))
            base = int(chance.integers(0, 2**62)) * 4 + 3
            self._powers.append(_powers(base, length))
            self._inverses.append(_powers(pow(base, -1, 2**64), length))

    def hashes(self, data: bytes, length: int, which: int = 0) -> Wide:
        """Hash of the `length` bytes from each place on, by the first or the second polynomial."""
        values = self._tables[which][np.frombuffer(data, dtype=np.uint8)]
        values *= self._powers[which][: len(values)]
        sums = np.zeros(len(values) + 1, dtype=np.uint64)
        np.cumsum(values, out=sums[1:])
        found = sums[length:] - sums[:-length]
        found *= self._inverses[which][: len(found)]
        return mix(found)

    def starts(self, batch: ByteBatch) -> tuple[Positions, Positions]:
        """Positions in the batch at which windows begin, and the stretch of each. No window crosses a stretch."""
        counts = np.diff(batch.edges) - self.size + 1
        stretch = np.repeat(np.arange(len(counts)), counts)
        first = np.cumsum(counts) - counts
        return np.arange(len(stretch)) + (batch.edges[:-1] - first)[stretch], stretch

    def anchors(self, batch: ByteBatch, starts: Positions) -> tuple[Wide, Positions]:
        """Hash of each window's anchor, and where in the batch it lies."""
        grams = self.hashes(batch.data, self.gram)
        last = np.uint64(2**_PLACE_BITS - 1)
        packed = (grams & ~last) | (last - np.arange(len(grams), dtype=np.uint64))
        smallest = sliding_minimum(packed, self.size - self.gram + 1)[starts]
        places = (last - (smallest & last)).astype(np.int64)
        return grams[places], places


def sliding_minimum(values: Wide, width: int) -> Wide:
    """The smallest of each `width` values in a row."""
    reach = 1
    while 2 * reach <= width:
        values = np.minimum(values[:-reach], values[reach:])
        reach *= 2
    rest = width - reach
    return np.minimum(values[: len(values) - rest], values[rest:]) if rest else values


def _powers(base: int, count: int) -> Wide:
    """1, base, base**2 … modulo 2**64."""
    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)

"""Finds exact boundaries among keys that lie on disk, in constant memory: weighted quantiles by radix.

A key is a pair of unsigned 64-bit numbers: an ordered value, and a hash that breaks ties. A boundary is a key. The keys
below it have at most a given weight in all, and with the next one they would have more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Wide = npt.NDArray[np.uint64]
Key = tuple[int, int]
# Groups, values, hashes, weights; each (n,).
Block = tuple[npt.NDArray[np.int64], Wide, Wide, npt.NDArray[np.int64]]

START: Key = (0, 0)
END: Key = (2**64, 0)
_BITS = 16
_DIGITS = 64 // _BITS


def ordered_bits(values: npt.NDArray[np.float64]) -> Wide:
    """Maps finite numbers to unsigned ones in the same order."""
    bits = (values + 0.0).view(np.uint64)  # + 0.0: -0.0 is 0.0
    sign = np.uint64(1 << 63)
    return np.where(bits & sign, ~bits, bits | sign)


def value_of(bits: int) -> float:
    """Returns the number that `ordered_bits` mapped."""
    found = bits & ~(1 << 63) if bits >> 63 else ~bits & (2**64 - 1)
    return float(np.array([found], dtype=np.uint64).view(np.float64)[0])


def boundaries(
    blocks: Callable[[], Iterable[Block]], targets: dict[tuple[int, Any], int]
) -> dict[tuple[int, Any], Key]:
    """Finds the boundary of each target.

    Args:
        blocks: gives all keys anew with each call; it is called eight times.
        targets: (group, any name) -> weight.
    """
    found = {name: _Search(name[0], target) for name, target in targets.items()}
    for digit in range(2 * _DIGITS):
        for block in blocks():
            for search in found.values():
                search.count(block, digit)
        for search in found.values():
            search.settle()
    return {name: search.key for name, search in found.items()}


class _Search:
    """Finds one boundary, 16 bits at a time."""

    def __init__(self, group: int, target: int) -> None:
        self._group, self._left = group, target
        self._digits: list[int] = []
        self._ended = False
        self._weights = np.zeros(2**_BITS, dtype=np.int64)

    def count(self, block: Block, digit: int) -> None:
        """Adds up weights by the next digit of the keys that begin with the digits that are known."""
        if self._ended:
            return
        groups, values, hashes, weights = block
        inside = groups == self._group
        word, place = divmod(digit, _DIGITS)
        if word:
            inside &= values == np.uint64(_number(self._digits[:_DIGITS]))
        known = self._digits[word * _DIGITS :]
        column = (values, hashes)[word][inside]
        shift = np.uint64(64 - _BITS * (place + 1))
        digits = column >> shift
        same = (
            np.ones(len(digits), dtype=bool) if not known else digits >> np.uint64(_BITS) == np.uint64(_number(known))
        )
        np.add.at(self._weights, (digits[same] & np.uint64(2**_BITS - 1)).astype(np.int64), weights[inside][same])

    def settle(self) -> None:
        """Chooses the next digit: the first with which the weight is more than the target."""
        if self._ended:
            return
        total = np.cumsum(self._weights)
        digit = int(np.searchsorted(total, self._left, side="right"))
        if digit == len(total):
            self._ended = True
            return
        self._left -= int(total[digit - 1]) if digit else 0
        self._digits.append(digit)
        self._weights[:] = 0

    @property
    def key(self) -> Key:
        """The boundary; `END` when all keys are below it."""
        return END if self._ended else (_number(self._digits[:_DIGITS]), _number(self._digits[_DIGITS:]))


def _number(digits: list[int]) -> int:
    value = 0
    for digit in digits:
        value = value << _BITS | digit
    return value


def below(values: Wide, hashes: Wide, key: Key) -> npt.NDArray[np.bool_]:
    """Tells which keys are below a boundary, (n,)."""
    if key == END:
        return np.ones(len(values), dtype=bool)
    value, tie = np.uint64(key[0]), np.uint64(key[1])
    found: npt.NDArray[np.bool_] = (values < value) | ((values == value) & (hashes < tie))
    return found

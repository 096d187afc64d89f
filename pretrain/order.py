"""Which window of which source stands where in training: closed-form, no index arrays.

The order of all training windows is a pure function of a seed and a few counts, so that any position is found in
microseconds at any corpus size, and `step` alone is the state of the data. Two pieces make it:

- `KeyedPermutation`: a balanced Feistel network over the smallest even number of bits that holds n values, walked along
  its cycles until the value is below n (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
- `Mixture`: slots are dealt in blocks. Every block holds the same number of slots of each source (largest remainder of
  the weights), in a keyed order of its own, so the ordinal of a slot within its source is a sum of two products.

Window `ordinal` of a source is taken from epoch `ordinal // windows`, each epoch under a permutation of its own: every
window is visited exactly once per epoch of its source. Sources without weights need no dealing: they form one pool
under one permutation, so an epoch is exact over all of them together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.uint64]

BLOCK_SLOTS = 1024
_ROUNDS = 6


class KeyedPermutation:
    """A pseudo-random bijection of [0, n), fixed by `key`; memory does not grow with n (n < 2**62)."""

    def __init__(self, n: int, key: bytes) -> None:
        assert 0 < n < 2**62
        self.n = n
        self._half_bits = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half_bits)) - 1)
        digest = hashlib.blake2b(key, digest_size=8 * _ROUNDS).digest()
        self._round_keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)

    def __call__(self, values: NDArray[np.integer]) -> NDArray[np.int64]:
        """Maps an array of values in [0, n) to their images."""
        result = self._encrypt(np.asarray(values).astype(np.uint64))
        # The network permutes fewer than 4n values (fewer than 5 for n = 1), so this ends after few rounds.
        while (outside := result >= self.n).any():
            result[outside] = self._encrypt(result[outside])
        return result.astype(np.int64)

    def _encrypt(self, values: Array) -> Array:
        left, right = values >> self._half_bits, values & self._mask
        for key in self._round_keys:
            left, right = right, left ^ (_mix(right ^ key) & self._mask)
        return (left << self._half_bits) | right


def _mix(values: Array) -> Array:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True)
class SourceSize:
    """A source as the order sees it: how many windows it has, and its share of the slots.

    Weights are positive on any scale; None, for all sources or for none, means in proportion to the windows.
    """

    name: str
    windows: int
    weight: float | None


@dataclass(frozen=True)
class Places:
    """For each slot asked for: index of the source, epoch of that source, and window within it. All (n,) int64."""

    source: NDArray[np.int64]
    epoch: NDArray[np.int64]
    window: NDArray[np.int64]


class Mixture:
    """The endless sequence of slots over several sources.

    Raises:
        ValueError: when there is no window at all, when only some sources have a weight, or when a weight is too small
            to get one slot in a block: such a source would never be visited.
    """

    def __init__(self, sources: Sequence[SourceSize], seed: int) -> None:
        self.sources = [source for source in sources if source.windows > 0]
        if not self.sources:
            raise ValueError("no source has a whole training window; add text or lower model.context_length")
        self._seed = seed
        weights = [source.weight for source in self.sources]
        given = [weight for weight in weights if weight is not None]
        if given and len(given) < len(weights):
            without = ", ".join(source.name for source in self.sources if source.weight is None)
            raise ValueError(f"give a weight to every source or to none of them (without one: {without})")
        # Pools are what slots are dealt to: the weighted sources, or all sources as one.
        windows = [source.windows for source in self.sources]
        self._pool_windows = np.array(windows if given else [sum(windows)], dtype=np.int64)
        self._pool_names = [source.name for source in self.sources] if given else ["all"]
        self._first_window = np.cumsum([0, *windows])[:-1]
        self._counts = _largest_remainder(given or [1.0], BLOCK_SLOTS)
        self._starts = np.cumsum(self._counts) - self._counts
        for name, count in zip(self._pool_names, self._counts, strict=True):
            if count == 0:
                raise ValueError(
                    f"source `{name}` has less than 1/{2 * BLOCK_SLOTS} of the mixture and would never be seen; "
                    "raise its weight or drop it"
                )

    @property
    def shares(self) -> dict[str, float]:
        """The exact share of each source after quantisation."""
        if len(self._counts) == len(self.sources):
            return {source.name: int(n) / BLOCK_SLOTS for source, n in zip(self.sources, self._counts, strict=True)}
        return {source.name: source.windows / int(self._pool_windows[0]) for source in self.sources}

    def places(self, slots: NDArray[np.int64]) -> Places:
        """Source, epoch and window of each slot; `slots` (n,) in any order."""
        pool, ordinal = self._deal(slots)
        windows = self._pool_windows[pool]
        epoch, position = ordinal // windows, ordinal % windows
        window = np.empty_like(position)
        for index, number in sorted(set(zip(pool.tolist(), epoch.tolist(), strict=True))):
            chosen = (pool == index) & (epoch == number)
            order = _permutation(int(self._pool_windows[index]), f"{self._seed}/{self._pool_names[index]}/{number}")
            window[chosen] = order(position[chosen])
        if len(self._pool_names) == len(self.sources):
            return Places(pool, epoch, window)
        source = np.searchsorted(self._first_window, window, side="right") - 1
        return Places(source, epoch, window - self._first_window[source])

    def _deal(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The pool of each slot, and how many earlier slots went to that pool."""
        if len(self._counts) == 1:
            return np.zeros_like(slots), slots
        block, inside = slots // BLOCK_SLOTS, slots % BLOCK_SLOTS
        dealt = np.empty_like(inside)
        for number in np.unique(block).tolist():
            chosen = block == number
            dealt[chosen] = _permutation(BLOCK_SLOTS, f"{self._seed}//{number}")(inside[chosen])
        pool = np.searchsorted(self._starts, dealt, side="right") - 1
        return pool, block * self._counts[pool] + dealt - self._starts[pool]


@lru_cache(maxsize=256)
def _permutation(n: int, key: str) -> KeyedPermutation:
    return KeyedPermutation(n, key.encode())


def _largest_remainder(weights: Sequence[float], total: int) -> NDArray[np.int64]:
    """Whole numbers in proportion to `weights` that add up to `total` (Hamilton's method; ties to the earlier one)."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * total
    counts = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(counts - exact, kind="stable")
    counts[by_remainder[: total - counts.sum()]] += 1
    return counts

"""Computes which window of which source stands at which slot of training: closed-form, no index arrays.

The order of all training windows is a pure function of a seed and a few counts, so that any position is found in
microseconds at any corpus size, and `step` alone is the state of the data. Two pieces make it:

- `KeyedPermutation`: a balanced Feistel network over the smallest even number of bits that holds n values, walked along
  its cycles until the value is below n (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
- `WindowOrder`: slots are dealt in groups. How many slots of each source the groups before one hold is a closed formula
  (`mixture_plan.Segment.counts`; remainders are carried on), and each group has a keyed order of its own; the ordinal
  of a slot within its source is the sum of both counts. Phases follow one another, and ordinals run on across them.

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

from pretrain.batches.mixture_plan import SLOT_GROUP, MixturePhase, Segment, SourceSize, plan_segments
from pretrain.batches.splitmix import STEP, mix

Array = NDArray[np.uint64]

# Raise it when the same settings come to mean another order: a run cannot go on across that.
ORDER_VERSION = 2
# Longer stretches of one epoch over all sources are counted by proportion, not by looking at each slot.
_COUNTED_SLOTS = 2**22
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
            left, right = right, left ^ (mix(right ^ key) & self._mask)
        return (left << self._half_bits) | right


@dataclass(frozen=True)
class SlotWindows:
    """The window at each slot asked for: index of its source, epoch of that source, number in it; all (n,) int64."""

    source: NDArray[np.int64]
    epoch: NDArray[np.int64]
    window: NDArray[np.int64]


class WindowOrder:
    """The sequence of slots over several sources.

    Args:
        sources: those without windows are left out.
        seed: of the order.
        slots: length of the run, which caps are measured by; None: endless, without caps.
        phases: changes of the mixture, in order.
        window_tokens: for messages.

    Raises:
        ValueError: when there is no window at all, or the shares cannot be had (see `plan_segments`).
    """

    def __init__(
        self,
        sources: Sequence[SourceSize],
        seed: int,
        slots: int | None = None,
        phases: Sequence[MixturePhase] = (),
        window_tokens: int = 1,
    ) -> None:
        self.sources = [source for source in sources if source.windows > 0]
        if not self.sources:
            raise ValueError("no source has a whole training window; add text or lower model.context_length")
        if empty := [source.name for source in sources if not source.windows and source.weight]:
            raise ValueError(
                f"source `{empty[0]}` has a weight but no whole training window; "
                "drop it, add text or lower model.context_length"
            )
        self._seed = seed
        digest = hashlib.blake2b(f"{seed}//blocks".encode(), digest_size=8).digest()
        self._group_key = np.uint64(int.from_bytes(digest, "little"))
        windows = [source.windows for source in self.sources]
        self._first_window = np.cumsum([0, *windows])[:-1]
        # Pools are what slots are dealt to: each source by itself, or all as one.
        self.pooled = not phases and _in_step(self.sources, slots)
        if self.pooled:
            share = tuple(size / sum(windows) for size in windows)
            self.segments = [Segment(0, None, share, tuple(windows))]
        else:
            self.segments = plan_segments(self.sources, phases, slots, window_tokens)
        self._pool_windows = np.array([sum(windows)] if self.pooled else windows, dtype=np.int64)
        self._pool_names = ["all"] if self.pooled else [source.name for source in self.sources]
        self._before: list[list[int]] = []  # slots of each source before each segment
        for segment in self.segments:
            self._before.append(self._count(segment.start) if self._before else [0] * len(self.sources))

    @property
    def end(self) -> int | None:
        """The slot after the last one, where caps decide; None: slots have no end."""
        last = self.segments[-1]
        return last.stop if last.exact else None

    @property
    def shares(self) -> dict[str, float]:
        """The share of each source in the first phase, as it is dealt."""
        weights = self.segments[0].weights
        return {source.name: weight / sum(weights) for source, weight in zip(self.sources, weights, strict=True)}

    def planned(self, start: int, stop: int) -> list[int]:
        """Slots of each source from slot `start` to before `stop`, by the plan: whole numbers near the exact shares."""

        def until(slots: int) -> list[int]:
            totals = [0] * len(self.sources)
            for segment in self.segments:
                if segment.start < slots:
                    end = slots if segment.stop is None else min(slots, segment.stop)
                    counts = segment.counts(end - segment.start)
                    totals = [total + count for total, count in zip(totals, counts, strict=True)]
            return totals

        return [after - before for before, after in zip(until(start), until(stop), strict=True)]

    def realised(self, slots: int) -> list[int]:
        """Counts the slots of each source among the first `slots` slots; cheap for any number.

        Beyond 4 million slots into an epoch over all sources as one pool, all is taken by proportion.
        """
        if not self.pooled:
            return self._count(slots)
        rest = slots % int(self._pool_windows[0])
        if rest > _COUNTED_SLOTS:
            return self.segments[0].counts(slots)
        seen = self.windows_at(np.arange(slots - rest, slots, dtype=np.int64)).source
        whole = self.segments[0].counts(slots - rest)
        return [int(n) for n in whole + np.bincount(seen, minlength=len(self.sources))]

    def _count(self, slots: int) -> list[int]:
        """`realised` for sources that are dealt."""
        index = max(i for i, _ in enumerate(self._before) if i == 0 or self.segments[i].start < slots)
        segment = self.segments[index]
        number, inside = divmod(slots - segment.start, SLOT_GROUP)
        counts = [
            before + dealt
            for before, dealt in zip(self._before[index], segment.counts(number * SLOT_GROUP), strict=True)
        ]
        pools = self._deal_groups([index], [number])[0][0, :inside] if inside else np.zeros(0, np.int64)
        return [int(n) for n in counts + np.bincount(pools, minlength=len(counts))]

    def same_before(self, other: WindowOrder, slots: int) -> bool:
        """Tells whether both have the same windows at the slots before `slots`, given the same sources and seed."""

        def past(order: WindowOrder) -> list[tuple[int, int | None, tuple[int, ...]]]:
            return [
                (segment.start, segment.stop if segment.exact else None, segment.weights)
                for segment in order.segments
                if segment.start < slots
            ]

        return self._pool_names == other._pool_names and past(self) == past(other)

    def windows_at(self, slots: NDArray[np.int64]) -> SlotWindows:
        """Source, epoch and window of each slot; `slots` (n,) in any order."""
        pool, ordinal = (np.zeros_like(slots), slots) if self.pooled else self._deal(slots)
        windows = self._pool_windows[pool]
        epoch, position = ordinal // windows, ordinal % windows
        window = np.empty_like(position)
        for index, number in sorted(set(zip(pool.tolist(), epoch.tolist(), strict=True))):
            chosen = (pool == index) & (epoch == number)
            order = _permutation(int(self._pool_windows[index]), f"{self._seed}/{self._pool_names[index]}/{number}")
            window[chosen] = order(position[chosen])
        if not self.pooled:
            return SlotWindows(pool, epoch, window)
        source = np.searchsorted(self._first_window, window, side="right") - 1
        return SlotWindows(source, epoch, window - self._first_window[source])

    def _deal(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source of each slot, and how many earlier slots went to that source."""
        last = self.segments[-1]
        assert not last.exact or slots.max(initial=0) < (last.stop or 0), "slot beyond the planned end of the run"
        begins = np.array([segment.start for segment in self.segments])
        segment = np.searchsorted(begins, slots, side="right") - 1
        group, inside = np.divmod(slots - begins[segment], SLOT_GROUP)
        # Each group of slots once, however many of its slots are asked for.
        groups, row = np.unique(group * len(begins) + segment, return_inverse=True)
        pools, ordinals = self._deal_groups((groups % len(begins)).tolist(), (groups // len(begins)).tolist())
        return pools[row, inside], ordinals[row, inside]

    def _deal_groups(self, segments: list[int], numbers: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(groups, SLOT_GROUP) source and ordinal of every slot of some groups, given by segment and number in it.

        Ordinals rise with the slots, so that a phase that ends within a group leaves no window out.

        For example two sources A and B with shares 3/4 and 1/4, and groups of 8 slots; group 1 has the slots 8 to 15:

            before    [6, 2]                   slots that the group before has dealt to A and B
            after     [12, 4]                  with those of this group, which deals 6 to A and 2 to B
            ends      [6, 8]                   in the order of their hashes, the first 6 slots are A's, the rest B's
            dealt     [3 7 0 5 1 6 2 4]        place of each slot in that order
            pools     [A B A A A B A A]
            ordinals  [6 2 7 8 9 3 10 11]      A goes on with its window 6, B with its window 2
        """
        shape = (len(segments), len(self.sources))
        base, ends = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64)
        lengths, firsts = np.empty(len(segments), dtype=np.int64), np.empty(len(segments), dtype=np.int64)
        after: list[int] = []
        for index, (place, number) in enumerate(zip(segments, numbers, strict=True)):
            segment, start = self.segments[place], number * SLOT_GROUP
            stop = start + SLOT_GROUP
            if segment.exact:
                assert segment.stop is not None
                stop = min(stop, segment.stop - segment.start)
            # Neighbours share a border, and counting is what costs.
            same = index and (segments[index - 1], numbers[index - 1] + 1) == (place, number)
            before = after if same else segment.counts(start)
            after = segment.counts(stop)
            base[index] = np.array(self._before[place], dtype=np.int64) + before
            ends[index] = np.cumsum(np.array(after, dtype=np.int64) - before)
            lengths[index], firsts[index] = stop - start, segment.start + start
        inside = np.arange(SLOT_GROUP)
        # A hash of the slot's number in the run: the order within a group depends on nothing else but the seed.
        hashes = mix((firsts[:, None] + inside).astype(np.uint64) * STEP + self._group_key)
        hashes[inside >= lengths[:, None]] = np.iinfo(np.uint64).max  # slots beyond the end of the run come last
        dealt = np.argsort(np.argsort(hashes, axis=1, kind="stable"), axis=1)  # twice: the place of each in the order
        pools = (dealt[:, :, None] >= ends[:, None, :]).sum(axis=2)
        pools[inside >= lengths[:, None]] = shape[1] - 1  # never asked for
        # Count the slots of each source in the order of the slots: sorted by source, then by slot.
        order = np.argsort(pools, axis=1, kind="stable")
        begins = np.concatenate([np.zeros((shape[0], 1), dtype=np.int64), ends[:, :-1]], axis=1)
        ranks = np.empty_like(pools)
        np.put_along_axis(ranks, order, inside - np.take_along_axis(begins, np.sort(pools, axis=1), axis=1), axis=1)
        return pools, np.take_along_axis(base, pools, axis=1) + ranks


def _in_step(sources: Sequence[SourceSize], slots: int | None) -> bool:
    """Tells whether sources need no dealing: none has a weight, and no cap is met while all pass through together."""
    passes = 0 if slots is None else -(-slots // sum(source.windows for source in sources))
    return all(
        source.weight is None and (source.cap is None or source.cap >= passes * source.windows) for source in sources
    )


@lru_cache(maxsize=256)
def _permutation(n: int, key: str) -> KeyedPermutation:
    return KeyedPermutation(n, key.encode())

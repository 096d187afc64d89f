"""Plans how many training slots each source gets: turns asked shares, phases and caps into whole numbers.

Shares are asked for by weights, by phase, or follow the sources' windows. A cap allows a source so many windows over
the whole run. Phases are served from the last to the first: annealing phases are short and chosen on purpose, so they
get what they ask for as far as the caps allow, and earlier phases share what is left. Within a phase a source that
would exceed its allowance gets just that, and the others take over the rest in proportion to their weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Slots are dealt in groups. Counts are carried on from group to group, so a group may be small: the shares of a phase
# that ends within one are then off by a few slots at most.
SLOT_GROUP = 32
# Weights become whole numbers on this scale, so that positions far into a run are counted exactly.
_SCALE = 2**48


@dataclass(frozen=True)
class SourceSize:
    """A source as the order sees it: how many windows it has, its share of the slots, and its cap.

    Weights are positive on any scale; None, for all sources or for none, means in proportion to the windows. The cap is
    in windows over the whole run.
    """

    name: str
    windows: int
    weight: float | None
    cap: int | None = None


@dataclass(frozen=True)
class MixturePhase:
    """The shares from slot `start` on; sources that are not named get none."""

    start: int
    weights: Mapping[str, float]


@dataclass(frozen=True)
class Segment:
    """A stretch of slots with one mixture.

    Attributes:
        start: first slot.
        stop: slot after the last one; None: no end of its own.
        asked: (sources,) shares asked for, in sum 1.
        weights: (sources,) the shares that are dealt, as whole numbers on any scale.
        exact: the weights are the slots of each source from start to stop, because caps decided: the last group is
            short, so that they are met to the slot. Otherwise a stretch may end within a group that is dealt whole.
    """

    start: int
    stop: int | None
    asked: tuple[float, ...]
    weights: tuple[int, ...]
    exact: bool = False

    def counts(self, slots: int) -> list[int]:
        """Counts the slots of each source among the first `slots` slots of this stretch.

        The counts add up to `slots`, never fall as it grows, and stray from the exact share by less than the number of
        sources: each source takes its rounded part of what those before it left.
        """
        found, left, rest = [], slots, sum(self.weights)
        for weight in self.weights:
            count = (2 * left * weight + rest) // (2 * rest) if rest else 0  # left * weight / rest, rounded
            found.append(count)
            left, rest = left - count, rest - weight
        return found


def plan_segments(
    sources: Sequence[SourceSize], phases: Sequence[MixturePhase], slots: int | None, window_tokens: int = 1
) -> list[Segment]:
    """The stretches of a run, in order.

    For example two sources, A of 60 windows and B of 40, equal weights, B capped at one epoch, 100 slots, and from slot
    80 on B alone:

        asked     [[1, 1], [0, 1]]              (phases, sources) weights
        shares    [(1/2, 1/2), (0, 1)]          the same, in sum 1
        lengths   [80, 20]                      slots of each phase
        by shares B would get 40 + 20 = 60      more than its 40 windows: caps decide, from the last phase back
        phase 2   [0, 20]                       what it asks for; B has 20 left
        phase 1   [60, 20]                      B gets those, A takes over the rest

    Args:
        sources: those that have windows.
        phases: changes of the mixture, in order of their start.
        slots: length of the run; None: endless, where caps mean nothing.
        window_tokens: for messages.

    Raises:
        ValueError: sources with and without weights, a phase that names a source without windows, a phase without a
            slot of its own, a source that would get no slot, or caps that leave less than the run needs.
    """
    asked = _asked(sources, phases)
    starts = [0, *(phase.start for phase in phases)] if not phases or phases[0].start else [p.start for p in phases]
    stops: list[int | None] = [*starts[1:], slots]
    for number, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        if stop is not None and stop <= start:
            raise ValueError(
                f"phase {number + 1} of data.mixture has no training step of its own; move its `start`, or train longer"
            )
    shares = [tuple(weight / math.fsum(weights) for weight in weights) for weights in asked]
    segments = [
        Segment(start, stop if number + 1 < len(starts) else None, share, _whole(share))
        for number, (start, stop, share) in enumerate(zip(starts, stops, shares, strict=True))
    ]
    if slots is None:
        return segments
    lengths = [(stop or slots) - start for start, stop in zip(starts, stops, strict=True)]
    if _caps_decide(sources, segments, lengths):
        counts = _within_caps(sources, shares, lengths, window_tokens)
        segments = [
            Segment(segment.start, segment.start + length, segment.asked, tuple(found), exact=True)
            for segment, length, found in zip(segments, lengths, counts, strict=True)
        ]
    totals = [sum(column) for column in zip(*map(Segment.counts, segments, lengths), strict=True)]
    for source, total, *wanted in zip(sources, totals, *shares, strict=True):
        if any(wanted) and not total:
            raise ValueError(
                f"source `{source.name}` has less than one of the {slots:,} windows of this run and would never be "
                "seen; raise its weight or cap, drop it, or train longer"
            )
    return segments


def _asked(sources: Sequence[SourceSize], phases: Sequence[MixturePhase]) -> list[list[float]]:
    """(phases, sources) weights for each stretch; the first is the mixture before any phase, unless one begins at 0."""
    weights = [source.weight for source in sources]
    given = [weight for weight in weights if weight is not None]
    if given and len(given) < len(weights):
        without = ", ".join(source.name for source in sources if source.weight is None)
        raise ValueError(f"give a weight to every source or to none of them (without one: {without})")
    asked = [given or [float(source.windows) for source in sources]] if not phases or phases[0].start else []
    names = [source.name for source in sources]
    for phase in phases:
        if missing := sorted(name for name, weight in phase.weights.items() if weight and name not in names):
            raise ValueError(
                f"data.mixture.phases: {', '.join(missing)} has no whole training window; "
                "add text, lower model.context_length, or leave it out"
            )
        asked.append([float(phase.weights.get(name, 0)) for name in names])
    return asked


def _whole(shares: Sequence[float]) -> tuple[int, ...]:
    """The shares on a scale of 2**48; none that is asked for becomes zero."""
    return tuple(max(1, round(share * _SCALE)) if share else 0 for share in shares)


def _caps_decide(sources: Sequence[SourceSize], segments: Sequence[Segment], lengths: Sequence[int]) -> bool:
    """Tells whether a cap could be exceeded: with a margin, as the last stretch may end within a group."""
    margin = SLOT_GROUP + len(sources) * len(segments)
    totals = [sum(column) for column in zip(*map(Segment.counts, segments, lengths), strict=True)]
    return any(
        source.cap is not None and total + margin > source.cap for source, total in zip(sources, totals, strict=True)
    )


def _within_caps(
    sources: Sequence[SourceSize], shares: Sequence[Sequence[float]], lengths: Sequence[int], window_tokens: int
) -> list[list[int]]:
    """(phases, sources) slots of each source in each stretch; `shares` likewise, `lengths` (phases,)."""
    left = [math.inf if source.cap is None else source.cap for source in sources]
    found: list[list[int]] = []
    for share, length in reversed(list(zip(shares, lengths, strict=True))):
        filled = fill(share, left, length)
        if filled is None:
            rooms = [(source.name, room) for source, room, part in zip(sources, left, share, strict=True) if part]
            listed = ", ".join(f"{name} {int(room) * window_tokens:,}" for name, room in rooms)
            raise ValueError(
                f"max_epochs leaves too little text: {length * window_tokens:,} of the run's "
                f"{sum(lengths) * window_tokens:,} tokens are to come from these sources, which may give "
                f"{int(sum(room for _, room in rooms)) * window_tokens:,} ({listed}); raise max_epochs, add text or "
                "sources, or train for less"
            )
        left = [room - count for room, count in zip(left, filled, strict=True)]
        found.insert(0, filled)
    return found


def fill(shares: Sequence[float], room: Sequence[float], slots: int) -> list[int] | None:
    """Whole numbers in proportion to `shares`, none above its `room`, in sum `slots`; None where that cannot be.

    Water-filling: what would overflow is set to its room, and the others share the rest, until none overflows. Rounding
    is by the largest remainder.
    """
    active = [index for index, share in enumerate(shares) if share]
    counts = [0] * len(shares)
    left = slots
    while active:
        weight = math.fsum(shares[index] for index in active)
        over = [index for index in active if left * shares[index] / weight >= room[index]]
        if not over:
            break
        for index in over:
            counts[index] = int(room[index])
        left -= sum(counts[index] for index in over)
        active = [index for index in active if index not in over]
    if not active:
        return None if left else counts
    exact = {index: left * shares[index] / weight for index in active}
    for index, value in exact.items():
        counts[index] = int(value)
    short = left - sum(counts[index] for index in active)
    for index in sorted(active, key=lambda index: counts[index] - exact[index])[:short]:
        counts[index] += 1
    return counts

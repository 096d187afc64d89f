"""The pure parts of `benchmarks/train.py`: medians over rounds, losses at equal tokens and equal time, the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

Mark = tuple[float, float]  # seconds (or tokens), loss
OURS = "replica"


class Summary(NamedTuple):
    """One contestant: medians over its rounds. Seconds are those of training, without start-up and scoring."""

    name: str
    rounds: int
    parameters: int
    tokens: int
    tokens_per_s: float
    mfu: float
    memory_bytes: float
    startup_seconds: float
    seconds: float
    marks: list[tuple[float, float, float]]  # tokens, seconds, loss

    @property
    def loss(self) -> float:
        """At the end; not a number where nothing was scored."""
        return self.marks[-1][2] if self.marks else math.nan


def summarise(runs: Sequence[dict[str, Any]], tokens_per_step: int, flops_per_s: float, peak: float) -> Summary:
    """Medians of one contestant's runs.

    Args:
        runs: results of `peers/clock.py`, each with its contestant's `name`.
        tokens_per_step: of all ranks.
        flops_per_s: operations per token; times tokens/s it is what is divided by `peak`.
        peak: FLOP/s of the device.
    """

    def middle(key: str) -> float:
        return median(run[key] for run in runs)

    startup, speed = middle("startup_seconds"), middle("tokens_per_s")
    marks = [
        (
            step * tokens_per_step,
            median(run["marks"][place][1] - run["startup_seconds"] for run in runs),
            median(run["marks"][place][2] for run in runs),
        )
        for place, (step, _, _) in enumerate(runs[0]["marks"])
    ]
    return Summary(
        runs[0]["name"], len(runs), runs[0]["parameters"], runs[0]["steps"] * tokens_per_step, speed,
        speed * flops_per_s / peak, middle("memory_bytes"), startup,
        median(run["seconds"] - run["startup_seconds"] for run in runs), marks,
    )  # fmt: skip


def loss_at(marks: Sequence[Mark], place: float) -> float:
    """Loss at a number of tokens or seconds, linear between marks; not a number outside of them."""
    for (before, high), (after, low) in pairwise(marks):
        if before <= place <= after:
            return high + (low - high) * (place - before) / (after - before)
    return math.nan


def place_of(marks: Sequence[Mark], loss: float) -> float:
    """Where a loss is first reached, linear between marks; not a number when it is not, or before the first mark."""
    for (before, high), (after, low) in pairwise(marks):
        if low <= loss <= high:
            return before if high == low else before + (after - before) * (high - loss) / (high - low)
    return math.nan


def time_to(ours: Sequence[Summary], loss: float) -> float:
    """Seconds that our training takes to end at `loss`: between runs of several budgets, or inside one that is alone.

    A schedule that ends at zero has its low losses at its end: a shorter budget is a run of its own, not a part of a
    longer one. The least over runs of what is read between ends and between marks.
    """
    ends = sorted((run.seconds, run.loss) for run in ours)
    found = [place_of(ends, loss), *(place_of([(m[1], m[2]) for m in run.marks], loss) for run in ours)]
    reached = [seconds for seconds in found if not math.isnan(seconds)]
    return min(reached, default=math.nan)


def table(summaries: Sequence[Summary]) -> str:
    """The Markdown tables: every contestant, then ours beside every peer."""
    lines = [
        "| | parameters | tokens | tok/s | share of peak | memory, MiB | start-up, s | training, s | last loss |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {s.name} ({s.rounds}) | {s.parameters / 1e6:.2f} M | {s.tokens:,} | {s.tokens_per_s:,.0f} | {s.mfu:.1%} "
        f"| {s.memory_bytes / 2**20:,.0f} | {s.startup_seconds:.1f} | {s.seconds:.1f} | {_number(s.loss, 3)} |"
        for s in summaries
    ]
    ours = [s for s in summaries if s.name.startswith(OURS)]
    peers = [s for s in summaries if not s.name.startswith(OURS)]
    full = max(ours, key=lambda s: s.tokens, default=None)
    if full is not None and peers:
        lines += [
            "",
            "| ours beside | tok/s | loss at equal tokens | loss at equal time | seconds to its last loss |",
            "|---|---:|---:|---:|---:|",
        ]
        lines += [_beside(full, ours, peer) for peer in peers]
    return "\n".join(lines) + "\n"


def _beside(full: Summary, ours: Sequence[Summary], peer: Summary) -> str:
    tokens = min(full.tokens, peer.tokens)
    seconds = min([s.marks[-1][1] for s in (full, peer) if s.marks], default=math.nan)
    at_tokens = [loss_at([(m[0], m[2]) for m in s.marks], tokens) for s in (full, peer)]
    at_time = [loss_at([(m[1], m[2]) for m in s.marks], seconds) for s in (full, peer)]
    reached = time_to(ours, peer.loss)
    return (
        f"| {peer.name} | {full.tokens_per_s / peer.tokens_per_s:.2f}x | {_number(at_tokens[0], 3)} / "
        f"{_number(at_tokens[1], 3)} | {_number(at_time[0], 3)} / {_number(at_time[1], 3)} at {_number(seconds, 0)} s "
        f"| {_number(reached, 1)} / {peer.seconds:.1f} = {_number(reached / peer.seconds, 2)} |"
    )


def _number(value: float, places: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{places}f}"

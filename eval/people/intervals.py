"""Computes 95% intervals of what votes say: over prompts, and over raters where there are enough of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from eval.statistics import SEED, Interval, percentiles, student_t

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Statistic = Callable[[Floats], Floats]

FEWEST_RATERS = 5  # from which an interval is over raters too; fewer say nothing of other raters
_AT_ONCE = 4_000_000  # weights of votes in memory


def intervals(statistic: Statistic, prompts: Ints, raters: Ints | None, samples: int) -> list[Interval | None]:
    """Computes the intervals of statistics of the votes.

    The percentiles are those of a bootstrap over prompts. With raters, the interval is widened by what they differ more
    than votes do by chance: the variances of a bootstrap over raters and of one over votes are subtracted (two-way
    clustering; Cameron, Gelbach and Miller 2011). A bootstrap of both at once would count the chance of a single vote
    three times, and ask for up to three times as many votes as needed.

    Args:
        statistic: maps weights of the votes, of shape (B, V), to values of shape (B, S).
        prompts: number of each vote's prompt, of shape (V,).
        raters: number of each vote's rater, -1 for a vote that nobody gave; None: over prompts alone.
        samples: number of resamples.

    Returns:
        S intervals; None where there are fewer than two prompts, or no spread.
    """
    n = len(np.unique(prompts))
    estimate = statistic(np.ones((1, len(prompts))))[0]
    if n < 2:
        return [None] * len(estimate)
    values = _resampled(statistic, prompts, samples)
    found = [percentiles(column, n) for column in values.T]
    if raters is None:
        return found
    count = len(np.unique(raters[raters >= 0]))
    single = np.where(raters >= 0, np.arange(len(raters)), -1)
    between = _resampled(statistic, raters, samples).var(axis=0) * count / (count - 1)
    excess = np.maximum(0, between - _resampled(statistic, single, samples).var(axis=0))
    own = values.var(axis=0)
    z = student_t(10**9)
    return [
        None if interval is None else _widened(interval, value, math.sqrt(1 + student_t(count - 1) ** 2 * more / z**2))
        for interval, value, more in zip(found, estimate, excess / np.maximum(own, 1e-300), strict=True)
    ]


def _widened(interval: Interval, value: float, factor: float) -> Interval:
    return float(value - (value - interval[0]) * factor), float(value + (interval[1] - value) * factor)


def _resampled(statistic: Statistic, units: Ints, samples: int) -> Floats:
    """Values of the statistic in resamples of the units, of shape (samples, S)."""
    generator = np.random.default_rng(SEED)
    step = max(1, _AT_ONCE // len(units))
    sizes = [min(step, samples - start) for start in range(0, samples, step)]
    return np.concatenate([statistic(drawn(generator, units, size)) for size in sizes])


def drawn(generator: np.random.Generator, units: Ints, samples: int) -> Floats:
    """Returns how often the unit of each vote was drawn, of shape (samples, V). Votes of no unit (-1) count once."""
    known, place = np.unique(units, return_inverse=True)
    real = known >= 0
    counts = np.ones((samples, len(known)))
    n = int(real.sum())
    if n:
        counts[:, real] = generator.multinomial(n, np.full(n, 1 / n), size=samples)
    return counts[:, place.reshape(-1)]

"""95% intervals: how far a score could be from the one of all such data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

SEED = 1234
_Z = 1.959963984540054  # two-sided 95% quantile of the normal distribution
_DRAWS_AT_ONCE = 4_000_000
# Aggregations over anything but numbers (a corpus BLEU, say) run in Python for every resample.
_SLOW_SAMPLES = 100

Interval = tuple[float, float]


def wilson(successes: float, n: int) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927); unlike the normal one it stays within [0, 1]."""
    share = successes / n
    spread = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    centre, scale = share + _Z**2 / (2 * n), 1 + _Z**2 / n
    # At no and all successes one bound is exact; rounding must not move it.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    return low, 1.0 if successes == n else (centre + spread) / scale


def _draws(n: int, samples: int) -> Any:
    """Yields index arrays (draws, n), together `samples` draws with replacement, in bounded memory."""
    generator = np.random.default_rng(SEED)
    step = max(1, _DRAWS_AT_ONCE // n)
    for start in range(0, samples, step):
        yield generator.integers(0, n, size=(min(step, samples - start), n))


def _percentiles(values: Sequence[float] | npt.NDArray[np.float64]) -> Interval | None:
    """None where resampling changes nothing: an interval without width would claim certainty."""
    array = np.asarray(values, dtype=np.float64)
    # Between two infinities there is nothing to interpolate.
    low, high = np.percentile(array, [2.5, 97.5], method="linear" if np.isfinite(array).all() else "nearest")
    return (float(low), float(high)) if low < high else None


def bootstrap_ratio(
    numerators: npt.NDArray[np.float64], denominators: npt.NDArray[np.float64], samples: int
) -> Interval | None:
    """Percentile bootstrap (Efron 1979) of sum(numerators) / sum(denominators) over paired units, shape (n,) each.

    Returns None for fewer than two units, or for units that are all alike: they say nothing about how units differ.
    """
    n = len(numerators)
    if n < 2:
        return None
    ratios = [
        numerators[index].sum(axis=1) / np.maximum(denominators[index].sum(axis=1), np.finfo(np.float64).tiny)
        for index in _draws(n, samples)
    ]
    return _percentiles(np.concatenate(ratios))


def bootstrap(items: Sequence[Any], aggregate: Callable[[Any], float], samples: int) -> tuple[Interval, int] | None:
    """Percentile bootstrap of `aggregate` over `items`; also returns how many resamples were drawn.

    None where `bootstrap_ratio` returns None.
    """
    n = len(items)
    if n < 2:
        return None
    numbers = all(isinstance(item, int | float) for item in items)
    drawn = samples if numbers else min(samples, _SLOW_SAMPLES)
    values = [float(aggregate([items[i] for i in row])) for index in _draws(n, drawn) for row in index]
    interval = _percentiles(values)
    return None if interval is None else (interval, drawn)


def no_interval(n: int, units: str) -> str:
    """Why there is no interval over `n` units."""
    return f"none: a single {units}" if n < 2 else f"none: every resample of the {n} {units}s scores the same"

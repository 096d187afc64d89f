"""Computes 95% intervals of scores, from the spread between the scored items."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

SEED = 1234
_Z = 1.959963984540054  # two-sided 95% quantile of the normal distribution
_DRAWS_AT_ONCE = 4_000_000
# Aggregations over other items than numbers, such as a corpus BLEU, run in Python for every resample.
_SLOW_SAMPLES = 100

Interval = tuple[float, float]


def wilson(successes: float, n: int) -> Interval:
    """Computes Wilson's score interval of a proportion (Wilson 1927), which stays within [0, 1].

    It solves |p - share| = z sqrt(p (1 - p) / n) for p.
    """
    share = successes / n
    spread = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    centre, scale = share + _Z**2 / (2 * n), 1 + _Z**2 / n
    # With no success or only successes, one bound is exactly 0 or 1, without rounding errors.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    return low, 1.0 if successes == n else (centre + spread) / scale


def _draws(n: int, samples: int) -> Any:
    """Yields index arrays of shape (draws, n), in total `samples` draws with replacement, in bounded memory."""
    generator = np.random.default_rng(SEED)
    step = max(1, _DRAWS_AT_ONCE // n)
    for start in range(0, samples, step):
        yield generator.integers(0, n, size=(min(step, samples - start), n))


def student_t(freedom: int) -> float:
    """Returns the two-sided 95% quantile of Student's t, within 0.01 from 4 degrees on (Abramowitz, Stegun 26.7.5)."""
    terms = (
        (_Z**3 + _Z) / 4,
        (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96,
        (3 * _Z**7 + 19 * _Z**5 + 17 * _Z**3 - 15 * _Z) / 384,
    )
    return float(_Z + sum(term / freedom**power for power, term in enumerate(terms, start=1)))


def percentiles(values: Sequence[float] | npt.NDArray[np.float64], n: int) -> Interval | None:
    """Returns the percentiles of a bootstrap over `n` units that cover 95%.

    The 2.5% and 97.5% ones cover less: a bootstrap of few units is too narrow by sqrt((n - 1) / n), and takes the
    normal distribution for Student's t. They are moved outwards to make up for both (Hesterberg 2015, "expanded
    percentile interval"). None if both are equal, since a zero width would claim certainty, or if a value is NaN.
    """
    array = np.asarray(values, dtype=np.float64)
    if np.isnan(array).any():
        return None
    tail = 100 * NormalDist().cdf(-math.sqrt(n / (n - 1)) * student_t(n - 1))
    # Interpolation between infinite values would give NaN.
    low, high = np.percentile(array, [tail, 100 - tail], method="linear" if np.isfinite(array).all() else "nearest")
    return (float(low), float(high)) if low < high else None


def bootstrap_ratio(
    numerators: npt.NDArray[np.float64], denominators: npt.NDArray[np.float64], samples: int
) -> Interval | None:
    """Computes the percentile bootstrap (Efron 1979) of sum(numerators) / sum(denominators).

    Units are resampled in pairs. Both arrays have shape (n,). Returns None for fewer than two units or for equal units,
    which give no information on the spread.
    """
    n = len(numerators)
    if n < 2:
        return None
    ratios = [
        numerators[index].sum(axis=1) / np.maximum(denominators[index].sum(axis=1), np.finfo(np.float64).tiny)
        for index in _draws(n, samples)
    ]
    return percentiles(np.concatenate(ratios), n)


def bootstrap_difference(
    ours: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    theirs: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    samples: int,
    convert: Callable[[Any], Any] = lambda ratios: ratios,
) -> Interval | None:
    """Computes the paired percentile bootstrap of the difference of two ratios over the same units.

    Each resample draws units, and takes both ratios of them: what makes a unit hard for both cancels out.

    Args:
        ours: numerators and denominators of one model, of shape (n,) each.
        theirs: of the other model, for the same units.
        samples: number of resamples.
        convert: makes scores of ratios, such as e to their power.
    """
    n = len(ours[0])
    if n < 2:
        return None
    tiny = np.finfo(np.float64).tiny
    differences = []
    for index in _draws(n, samples):
        one, other = (
            convert(above[index].sum(axis=1) / np.maximum(below[index].sum(axis=1), tiny))
            for above, below in (ours, theirs)
        )
        with np.errstate(invalid="ignore"):  # infinite - infinite: such a difference has no interval
            differences.append(one - other)
    return percentiles(np.concatenate(differences), n)


def mcnemar(only_before: int, only_after: int) -> float:
    """Computes the two-sided p-value of McNemar's exact test (McNemar 1947): a binomial test of the items that differ.

    Args:
        only_before: items that are right before and wrong after.
        only_after: items that are wrong before and right after.
    """
    n, fewer = only_before + only_after, min(only_before, only_after)
    ways = term = 1
    for number in range(fewer):
        term = term * (n - number) // (number + 1)
        ways += term
    return min(1.0, 2 * (ways / 2**n)) if n < 1000 else min(1.0, 2 * math.exp(math.log(ways) - n * math.log(2)))


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Estimates without bias the probability that one of k answers is right (Chen et al., arXiv:2107.03374).

    Args:
        samples: answers that were drawn.
        right: how many of them are right.
        k: at most `samples`.
    """
    assert 1 <= k <= samples and 0 <= right <= samples
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def pass_ks(samples: int) -> list[int]:
    """Returns the k of pass@k that are scored: 1, 2, 4, … and the number of samples; none for a single sample."""
    powers = [2**power for power in range(samples.bit_length()) if 2**power <= samples]
    return sorted({*powers, samples}) if samples > 1 else []


def bootstrap(items: Sequence[Any], aggregate: Callable[[Any], float], samples: int) -> tuple[Interval, int] | None:
    """Computes the percentile bootstrap of `aggregate` over `items`; also returns the number of resamples.

    None where `bootstrap_ratio` returns None.
    """
    n = len(items)
    if n < 2:
        return None
    numbers = all(isinstance(item, int | float) for item in items)
    drawn = samples if numbers else min(samples, _SLOW_SAMPLES)
    values = [float(aggregate([items[i] for i in row])) for index in _draws(n, drawn) for row in index]
    interval = percentiles(values, n)
    return None if interval is None else (interval, drawn)


def no_interval(n: int, units: str) -> str:
    """Tells why there is no interval over `n` units."""
    return f"none: a single {units}" if n < 2 else f"none: every resample of the {n} {units}s scores the same"

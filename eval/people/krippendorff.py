"""Measures how far raters agree, beyond chance: Krippendorff's alpha, with gaps.

Follows Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011). 1 is full agreement, 0 is what chance gives.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from eval.statistics import SEED, Interval

Floats = npt.NDArray[np.float64]
Level = Literal["nominal", "ordinal", "interval"]


def alpha(ratings: Floats, level: Level) -> float | None:
    """Computes alpha; None where it is not defined: no unit has two values, or all values are equal.

    Args:
        ratings: a value of each rater for each unit, of shape (raters, units); NaN where there is none.
        level: how far apart two values are. `nominal`: equal or not. `ordinal`: by ranks. `interval`: by numbers.
    """
    found = _alphas(*_coincidences(ratings), level, np.ones((1, ratings.shape[1])))[0]
    return None if np.isnan(found) else float(found)


def alpha_interval(ratings: Floats, level: Level, samples: int) -> Interval | None:
    """Computes a 95% interval by the bootstrap over units; None where fewer than two units have two values."""
    coincidences, values = _coincidences(ratings)
    units = np.flatnonzero(coincidences.sum(axis=(1, 2)))
    if len(units) < 2:
        return None
    n = len(units)
    weights = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=samples).astype(np.float64)
    found = _alphas(coincidences[units], values, level, weights)
    found = found[~np.isnan(found)]  # a resample in which all values are equal says nothing
    if not len(found):
        return None
    low, high = np.percentile(found, [2.5, 97.5])
    return (float(low), float(high)) if low < high else None


def _coincidences(ratings: Floats) -> tuple[Floats, Floats]:
    """Pairs of values within each unit, of shape (units, values, values), and the values, of shape (values,)."""
    values = np.unique(ratings[~np.isnan(ratings)])
    counts = (ratings[:, :, None] == values).sum(axis=0).astype(np.float64)  # (units, values)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(len(values))
    return pairs / np.maximum(counts.sum(axis=1) - 1, 1)[:, None, None] * (counts.sum(axis=1) > 1)[
        :, None, None
    ], values


def _alphas(coincidences: Floats, values: Floats, level: Level, weights: Floats) -> Floats:
    """Alpha for each weighting of the units, of shape (B,); NaN where it is not defined."""
    size = len(values)
    together = (weights @ coincidences.reshape(len(coincidences), -1)).reshape(-1, size, size)
    totals = together.sum(axis=2)  # (B, values)
    n = totals.sum(axis=1)
    distance = _distances(values, totals, level)
    observed = (together * distance).sum(axis=(1, 2)) / np.where(n > 0, n, np.nan)
    expected = (totals[:, :, None] * totals[:, None, :] * distance).sum(axis=(1, 2))
    expected /= np.where(n > 1, n * (n - 1), np.nan)
    return np.asarray(1 - observed / np.where(expected > 0, expected, np.nan))


def _distances(values: Floats, totals: Floats, level: Level) -> Floats:
    """The squared differences δ² between values, of shape (B, values, values)."""
    if level == "nominal":
        return np.broadcast_to(1 - np.eye(len(values)), (len(totals), len(values), len(values)))
    if level == "interval":
        return np.broadcast_to((values[:, None] - values) ** 2, (len(totals), len(values), len(values)))
    # The sum of how often the values from c to k occur, of c and k the half: the distance of their mean ranks.
    ranks = np.cumsum(totals, axis=1) - totals / 2
    return np.asarray((ranks[:, :, None] - ranks[:, None, :]) ** 2)

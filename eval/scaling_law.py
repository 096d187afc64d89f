"""Fits loss as a power law of compute, L(C) = E + A C^-alpha, to a few runs (arXiv:2001.08361, arXiv:2203.15556)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_ALPHAS = np.geomspace(0.002, 2.0, 20_000)


class PowerLaw(NamedTuple):
    """L(C) = floor + scale (C / unit)^-exponent; `unit` is the geometric mean of the fitted computes."""

    floor: float
    scale: float
    exponent: float
    unit: float
    free: int  # parameters fitted: 2 (floor 0) or 3

    def __call__(self, compute: float) -> float:
        """Computes the loss at `compute` FLOPs."""
        return float(self.floor + self.scale * (compute / self.unit) ** -self.exponent)


class Prediction(NamedTuple):
    """A predicted loss, and the range over fits that leave out one run each and the fit without a floor."""

    value: float
    low: float
    high: float


def fit(computes: Sequence[float], losses: Sequence[float], free: int | None = None) -> PowerLaw:
    """Fits by least relative squares: two parameters (floor 0) for three runs, three for four or more.

    Raises:
        ValueError: for fewer than three runs, or runs that all cost the same.
    """
    if len(computes) < 3 or len(set(computes)) < 3:
        raise ValueError(
            f"a scaling law needs three runs of different compute, got {len(set(computes))}; add sizes to the sweep"
        )
    return _fit(computes, losses, free or (2 if len(computes) == 3 else 3))


def _fit(computes: Sequence[float], losses: Sequence[float], free: int) -> PowerLaw:
    c, y = np.asarray(computes, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    unit = float(np.exp(np.log(c).mean()))
    powers = (c[None, :] / unit) ** -_ALPHAS[:, None] / y  # (exponents, runs), relative to the loss
    ones = 1 / y
    # For each exponent on the grid, scale and floor follow from the normal equations. A negative floor is set to 0.
    pp, po, oo = (powers**2).sum(1), powers @ ones, float(ones @ ones)
    p1, o1 = powers.sum(1), float(ones.sum())
    floor = np.zeros_like(_ALPHAS)
    if free == 3:
        determinant = pp * oo - po**2
        floor = np.maximum(0.0, (pp * o1 - po * p1) / np.where(determinant > 1e-12, determinant, np.inf))
    scale = np.maximum(0.0, (p1 - floor * po) / pp)
    errors = ((floor[:, None] * ones + scale[:, None] * powers - 1) ** 2).sum(1)
    best = int(errors.argmin())
    return PowerLaw(float(floor[best]), float(scale[best]), float(_ALPHAS[best]), unit, free)


def predict(computes: Sequence[float], losses: Sequence[float], compute: float) -> tuple[PowerLaw, Prediction]:
    """Fits the law to all runs and predicts the loss at `compute` FLOPs. The range is not a confidence interval."""
    law = fit(computes, losses)
    value = law(compute)
    others = [_fit(computes, losses, 2)(compute)]
    for left in range(len(computes)):
        keep = [index for index in range(len(computes)) if index != left]
        others.append(_fit([computes[i] for i in keep], [losses[i] for i in keep], min(law.free, len(keep)))(compute))
    return law, Prediction(value, min(value, *others), max(value, *others))

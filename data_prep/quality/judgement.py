"""Defines the answer of a quality rule: keep, drop with a reason, or another text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from data_prep.quality.text_facts import TextFacts


@dataclass(frozen=True, slots=True)
class Drop:
    """The document does not stay.

    Attributes:
        reason: the exact rule, as the funnel shows it.
        detail: what was found and the threshold, as `0.41 > 0.3`.
    """

    reason: str
    detail: str


Judgement = Drop | str
Rule = Callable[[TextFacts], Judgement]


def _shown(value: float) -> str:
    """A count in full, a share with four digits."""
    return f"{value:.0f}" if abs(value) >= 1e4 and math.isfinite(value) else f"{value:.4g}"


def above(reason: str, value: float, threshold: float | None) -> Drop | None:
    """A drop where `value` > `threshold`; None switches a threshold off."""
    if threshold is None or value <= threshold:
        return None
    return Drop(reason, f"{_shown(value)} > {threshold:.10g}")


def below(reason: str, value: float, threshold: float | None) -> Drop | None:
    """A drop where `value` < `threshold`; None switches a threshold off."""
    if threshold is None or value >= threshold:
        return None
    return Drop(reason, f"{_shown(value)} < {threshold:.10g}")

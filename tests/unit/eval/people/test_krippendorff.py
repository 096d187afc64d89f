"""Alpha equals Krippendorff's own examples ("Computing Krippendorff's Alpha-Reliability", 2011)."""

from __future__ import annotations

import numpy as np
import pytest

from eval.people.krippendorff import Level, alpha, alpha_interval

_ = np.nan
# Example D: four observers, twelve units, gaps.
FOUR = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
        [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
    ]
)


@pytest.mark.parametrize(("level", "value"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_four_observers_with_gaps(level: Level, value: float) -> None:
    assert alpha(FOUR, level) == pytest.approx(value, abs=5e-4)


def test_two_observers_two_values() -> None:
    """Example A."""
    meg, owen = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert alpha(np.array([meg, owen], dtype=float), "nominal") == pytest.approx(0.095, abs=5e-4)


def test_two_observers_many_values() -> None:
    """Example B: a a b b d c c c e d d a against b a b b b c c c e d d d."""
    ben, gerry = ([ord(letter) for letter in letters] for letters in ("aabbdcccedda", "babbbcccdddd"))
    gerry[8] = ord("e")
    assert alpha(np.array([ben, gerry], dtype=float), "nominal") == pytest.approx(0.692, abs=5e-4)


def test_what_has_no_alpha() -> None:
    assert alpha(np.array([[1.0, 1, 1], [1, 1, 1]]), "nominal") is None  # no spread
    assert alpha(np.array([[1.0, 2, 1]]), "nominal") is None  # a single rater
    assert alpha(np.array([[1.0, _], [_, 2]]), "ordinal") is None  # nothing in common
    assert alpha(np.array([[1.0, 2, 1], [1, 2, 1]]), "nominal") == 1


def test_the_interval_holds_the_value() -> None:
    found = alpha_interval(FOUR, "nominal", 500)
    assert found is not None and found[0] < 0.743 < found[1] <= 1
    assert alpha_interval(np.array([[1.0, _], [1, 2]]), "nominal", 100) is None

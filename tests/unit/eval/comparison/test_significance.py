"""Paired tests keep what they promise: false claims, power, intervals, many scores at once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eval.comparison import significance
from eval.comparison.significance import Array, PairedOutcome, compare_ratios, holm, mcnemar_interval
from eval.statistics import bootstrap_difference, mcnemar

N = 60


@pytest.fixture(autouse=True)
def fewer_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "TRIALS", 499)


def likelihoods(generator: np.random.Generator, gain: float) -> PairedOutcome:
    """Two models on documents of very different difficulty and length."""
    sizes = generator.integers(50, 900, N).astype(float)
    hard = generator.normal(2.0, 0.5, N)
    theirs, ours = (sizes * (hard - by + generator.normal(0, 0.05, N)) for by in (0.0, gain))
    return compare_ratios((ours, sizes), (theirs, sizes), 100)


def answers(generator: np.random.Generator, gain: float) -> PairedOutcome:
    hard = generator.uniform(0, 1, N)
    theirs, ours = ((generator.uniform(0, 1, N) < np.clip(hard + by, 0, 1)).astype(float) for by in (0.0, gain))
    return compare_ratios((ours, np.ones(N)), (theirs, np.ones(N)), 100)


@pytest.mark.parametrize("scores", [likelihoods, answers])
def test_equal_models_are_called_different_one_time_in_twenty_at_most(scores: object) -> None:
    """300 pairs of models; three standard errors above 5% are allowed."""
    generator = np.random.default_rng(17)
    claims = sum(scores(generator, 0.0).p < 0.05 for _ in range(300))  # type: ignore[operator]
    assert claims <= 300 * 0.05 + 3 * math.sqrt(300 * 0.05 * 0.95)


def test_after_holm_one_family_in_twenty_has_a_false_claim_at_most() -> None:
    """200 families of six scores each; without Holm a quarter of them would have one."""
    generator = np.random.default_rng(18)
    plain = adjusted = 0
    for _ in range(200):
        values = [likelihoods(generator, 0.0).p for _ in range(6)]
        plain += min(values) < 0.05
        adjusted += min(holm(values)) < 0.05
    assert adjusted <= 200 * 0.05 + 3 * math.sqrt(200 * 0.05 * 0.95) < plain


def test_a_small_difference_is_found_where_two_intervals_overlap() -> None:
    """Documents spread by 0.5 bits, models differ by 0.03: an interval of one model is 0.25 wide."""
    generator = np.random.default_rng(19)
    found = [likelihoods(generator, 0.03) for _ in range(40)]
    assert sum(outcome.p < 0.05 for outcome in found) >= 34
    assert all(outcome.low is not None and outcome.high is not None for outcome in found)
    inside = sum((outcome.low or 0) <= -0.03 <= (outcome.high or 0) for outcome in found)
    assert inside >= 33, "95% intervals hold the true difference"


def test_the_interval_of_right_and_wrong_agrees_with_mcnemar() -> None:
    for lost, gained, n in ((0, 5, 100), (0, 6, 100), (3, 12, 40), (4, 12, 40), (12, 3, 500), (0, 60, 60), (7, 0, 7)):
        low, high = mcnemar_interval(lost, gained, n)
        assert low is not None and high is not None and -1 <= low <= (gained - lost) / n <= high <= 1
        assert (not low <= 0 <= high) == (mcnemar(lost, gained) < 0.05), (lost, gained)
    assert mcnemar_interval(0, 0, 10) == (None, None)
    low, high = mcnemar_interval(3, 12, 40)
    assert mcnemar_interval(12, 3, 40) == pytest.approx((-(high or 0), -(low or 0)), abs=0.003)


def test_the_interval_of_right_and_wrong_covers_the_truth() -> None:
    generator, inside = np.random.default_rng(20), 0
    for _ in range(200):
        lost, gained, _ = generator.multinomial(80, [0.06, 0.14, 0.8])
        low, high = mcnemar_interval(int(lost), int(gained), 80)
        inside += low is not None and high is not None and low <= 0.08 <= high
    assert inside >= 186


@pytest.mark.parametrize("n", [8, 13])
def test_intervals_of_few_items_hold_the_truth_too(n: int) -> None:
    """Plain percentiles of a bootstrap over so few items hold it in 87 and 88 of 100 cases."""
    generator, inside, cases = np.random.default_rng(22), 0, 300
    for _ in range(cases):
        sizes = generator.integers(50, 900, n).astype(float)
        theirs, ours = (sizes * (2.0 + generator.normal(0, 0.05, n)) for _ in range(2))
        low, high = bootstrap_difference((ours, sizes), (theirs, sizes), 200) or (1.0, 1.0)
        inside += low <= 0 <= high
    assert inside >= 0.905 * cases


def test_two_items_say_nothing() -> None:
    """The smallest p of n differing items is 2 / 2^n: no claim below six."""
    for n, least in ((1, 1.0), (2, 0.5), (5, 0.0625), (6, 0.03125)):
        theirs, sizes = np.linspace(2, 3, n), np.ones(n)
        outcome = compare_ratios((theirs - 1, sizes), (theirs, sizes), 100)
        assert outcome.p == pytest.approx(least)
    same = compare_ratios((theirs, sizes), (theirs, sizes), 100)
    assert same.p == 1 and same.differing == 0 and same.low is None


def test_other_denominators_are_swapped_with_their_numerators() -> None:
    """Answers of one model are longer: both parts of the ratio go with the item."""
    generator = np.random.default_rng(21)
    theirs: tuple[Array, Array] = (generator.uniform(1, 2, 40), np.full(40, 10.0))
    ours = (theirs[0] * 2, theirs[1] * 2)
    assert compare_ratios(ours, theirs, 100).p > 0.9, "the same ratio"
    assert compare_ratios((ours[0], theirs[1]), theirs, 100).p < 0.01

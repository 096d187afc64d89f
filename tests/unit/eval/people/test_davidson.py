"""Strengths equal those of choix, of logistic regression and of a general optimiser; known ones are recovered."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from eval.people.davidson import (
    ELO,
    LEFT,
    RIGHT,
    TIE,
    Disconnected,
    PairVotes,
    check_connected,
    elo_half_width,
    fit,
    log_likelihood,
)
from eval.people.intervals import intervals
from tests.parts.voters import simulate

THETA = [0.7, 0.1, -0.3, -0.5]


def votes_of(rows: list[tuple[int, int, int]]) -> PairVotes:
    left, right, outcome = np.array(rows).T
    number = np.arange(len(rows))
    return PairVotes(left, right, outcome, number, 0 * number, number >= 0, np.ones(len(rows)))


def chosen(votes: PairVotes, mask: np.ndarray) -> PairVotes:
    return PairVotes(*(getattr(votes, name)[mask] for name in PairVotes.__dataclass_fields__))


def test_it_is_the_maximum_that_a_general_optimiser_finds() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    votes = simulate(np.random.default_rng(3), THETA, 0.3, -0.4, prompts=40)
    unseen = (np.arange(len(votes)) % 10 == 0) & (votes.outcome == TIE)
    mixed = replace(votes, shown=~unseen, weight=1 + np.arange(len(votes)) % 3)

    def loss(beta: np.ndarray) -> float:
        return -log_likelihood(mixed, beta[:4].tolist(), beta[4], beta[5]) + 0.5e-3 * float(beta @ beta)

    found = optimize.minimize(loss, np.zeros(6), tol=1e-10).x
    ours = fit(mixed, 4)
    assert np.allclose([*ours.theta[0], *ours.gamma, *ours.log_nu], found, atol=1e-4)
    assert abs(ours.theta[0].mean()) < 1e-9


def test_without_ties_and_sides_it_is_the_bradley_terry_of_choix() -> None:
    choix = pytest.importorskip("choix")
    votes = simulate(np.random.default_rng(4), THETA, 0.0, -50.0, prompts=60)
    unshown = replace(votes, shown=np.zeros(len(votes), dtype=bool))  # no effect of position
    won = [
        (le, ri) if out == LEFT else (ri, le)
        for le, ri, out in zip(votes.left, votes.right, votes.outcome, strict=True)
    ]
    theirs = choix.opt_pairwise(4, won, alpha=1e-6)
    assert np.allclose(fit(unshown, 4, ridge=2e-6).theta[0], theirs - theirs.mean(), atol=1e-4)


def test_without_ties_the_effect_of_position_is_the_intercept_of_a_logistic_regression() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    votes = simulate(np.random.default_rng(5), THETA, 0.6, -50.0, prompts=60)
    places = np.zeros((len(votes), 4))
    places[np.arange(len(votes)), votes.left], places[np.arange(len(votes)), votes.right] = 1, -1
    model = linear.LogisticRegression(C=1e8, tol=1e-10, max_iter=1000).fit(places, votes.outcome == LEFT)
    ours = fit(votes, 4, ridge=1e-8)
    assert np.allclose(ours.gamma[0], model.intercept_[0], atol=1e-4)
    assert np.allclose(ours.theta[0], model.coef_[0] - model.coef_[0].mean(), atol=1e-4)


def test_two_models_have_a_closed_form() -> None:
    """Without an effect of position: θ1 - θ2 = ln(wins / losses), ν = ties / √(wins losses)."""
    rows = (
        [(0, 1, LEFT)] * 15
        + [(1, 0, RIGHT)] * 15
        + [(0, 1, RIGHT)] * 5
        + [(1, 0, LEFT)] * 5
        + [(0, 1, TIE), (1, 0, TIE)] * 10
    )
    ours = fit(votes_of(rows), 2, ridge=1e-9)
    assert ours.theta[0, 0] - ours.theta[0, 1] == pytest.approx(math.log(3), abs=1e-6)
    assert ours.log_nu[0] == pytest.approx(math.log(20 / math.sqrt(300)), abs=1e-6)
    assert ours.gamma[0] == pytest.approx(0, abs=1e-6)
    assert ours.elo[0, 0] == pytest.approx(math.log(3) / 2 * ELO, abs=1e-3)


def test_the_order_of_votes_does_not_matter_and_weights_count_votes() -> None:
    votes = simulate(np.random.default_rng(6), THETA, 0.2, -0.5, prompts=30)
    order = np.random.default_rng(0).permutation(len(votes))
    one, other = fit(votes, 4), fit(chosen(votes, order), 4)
    assert np.allclose(one.theta, other.theta, atol=1e-9)
    twice = np.concatenate([np.arange(len(votes)), np.arange(10)])
    weights = np.ones((1, len(votes)))
    weights[0, :10] = 2
    assert np.allclose(fit(chosen(votes, twice), 4).theta, fit(votes, 4, weights).theta, atol=1e-9)


def test_a_model_that_wins_everything_has_a_finite_strength() -> None:
    found = fit(votes_of([(0, 1, LEFT), (1, 0, RIGHT)] * 50), 2)
    assert 500 < found.elo[0, 0] < 2000 and np.isfinite(found.theta).all()


def test_ties_that_nobody_saw_say_nothing_of_sides() -> None:
    decided = [(0, 1, LEFT)] * 6 + [(0, 1, RIGHT)] * 2 + [(1, 0, LEFT)] * 5 + [(1, 0, RIGHT)] * 3
    votes = votes_of(decided + [(0, 1, TIE)] * 30)
    unseen = replace(votes, shown=np.arange(len(votes)) < 16)
    alone, hidden = fit(votes_of(decided), 2), fit(unseen, 2)
    assert hidden.gamma[0] == pytest.approx(alone.gamma[0], rel=0.03) and hidden.log_nu[0] < -4
    assert 0 < hidden.theta[0, 0] < 0.5 * alone.theta[0, 0]  # but they say that the models are alike


def test_parts_that_no_vote_connects_are_named() -> None:
    left, right = np.array([0, 1, 3]), np.array([1, 2, 4])
    with pytest.raises(Disconnected, match=r"no vote connects these models: a, b, c \| d, e;"):
        check_connected(left, right, "abcde")
    check_connected(np.array([0, 2]), np.array([1, 1]), "abc")


def test_the_precision_that_is_told_beforehand_is_that_of_the_interval() -> None:
    assert elo_half_width(100) == pytest.approx(68.1, abs=0.05) and elo_half_width(400) == pytest.approx(
        34.05, abs=0.05
    )
    votes = simulate(np.random.default_rng(1), [0.0, 0.0], 0.0, -50.0, prompts=400)
    (found,) = intervals(lambda weights: np.diff(fit(votes, 2, weights).elo, axis=1), votes.prompt, None, 400)
    assert found is not None and (found[1] - found[0]) / 2 == pytest.approx(34.05, rel=0.1)


def covered(prompts: int, raters: int, times: int, spread: float = 0.0) -> np.ndarray:
    """How often the true strengths and the true effect of position lie within their intervals."""
    theta, hits = np.array([0.4, 0.0, -0.4]), np.zeros(4)
    for time in range(times):
        votes = simulate(np.random.default_rng(time), theta.tolist(), 0.2, -0.5, prompts, raters, spread)

        def estimates(weights: np.ndarray, votes: PairVotes = votes) -> np.ndarray:
            found = fit(votes, 3, weights)
            return np.concatenate([found.theta, found.gamma[:, None]], axis=1)

        found = intervals(estimates, votes.prompt, votes.rater if raters > 1 else None, 200)
        for number, (bounds, true) in enumerate(zip(found, [*theta, 0.2], strict=True)):
            assert bounds is not None
            hits[number] += bounds[0] <= true <= bounds[1]
    return hits / times


@pytest.mark.parametrize(("prompts", "raters", "times"), [(40, 1, 100), (20, 6, 40)])
def test_known_strengths_lie_within_the_intervals(prompts: int, raters: int, times: int) -> None:
    """95%, give or take what so few repetitions leave; benchmarks/judging.py has more of them."""
    assert (covered(prompts, raters, times) >= 0.9).all()

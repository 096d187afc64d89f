"""Estimates the strengths of models from votes between two answers: Bradley-Terry with ties and an effect of position.

With strengths θ, Davidson (1970) gives ties a weight ν, and Davidson and Beaver (1977) give the left side a weight e^γ:

    P(left) ∝ e^(θ_left + γ)    P(right) ∝ e^(θ_right)    P(tie) ∝ ν e^((θ_left + θ_right + γ) / 2)

All three are linear in θ, γ and ln ν, so that this is a multinomial logit: its log-likelihood is concave and has one
maximum, whatever the order of the votes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEFT, RIGHT, TIE = 0, 1, 2
ELO = 400 / math.log(10)  # points per unit of θ: 400 points are odds of 10 to 1
# Holds θ of a model that lost or won every vote to a finite value. It is that of a normal prior with variance 1000.
RIDGE = 1e-3
_LONGEST_STEP = 2.0
_MOST_STEPS = 200


class Disconnected(ValueError):
    """Models that no chain of votes connects, so that their strengths cannot be compared."""


@dataclass(frozen=True)
class PairVotes:
    """PairVotes between two answers, one in each place of the arrays, of shape (V,).

    Attributes:
        left, right: numbers of the models whose answers stood there.
        outcome: LEFT, RIGHT or TIE.
        prompt: number of the prompt.
        rater: number of the rater; -1 for a vote that nobody gave.
        shown: False where nobody was asked, because the answers are identical. Such a tie is half a win for each: no
            rater chose it, so that it says nothing of how often raters call a tie, or of sides.
        weight: how many votes it stands for.
    """

    left: Ints
    right: Ints
    outcome: Ints
    prompt: Ints
    rater: Ints
    shown: npt.NDArray[np.bool_]
    weight: Floats

    def __len__(self) -> int:
        return len(self.left)


@dataclass(frozen=True)
class Strengths:
    """The maximum of the likelihood; each array has one entry for each set of votes.

    Attributes:
        theta: strengths, of mean 0, of shape (B, models).
        gamma: log-odds of the left one among two equal answers, ties aside, of shape (B,).
        log_nu: logarithm of the weight of ties, of shape (B,).
    """

    theta: Floats
    gamma: Floats
    log_nu: Floats

    @property
    def elo(self) -> Floats:
        """Strengths in Elo points, of mean 0."""
        return self.theta * ELO

    @property
    def left_share(self) -> Floats:
        """Probability that the left one of two equal answers is chosen, ties aside."""
        return np.asarray(1 / (1 + np.exp(-self.gamma)))


def fit(votes: PairVotes, models: int, weights: Floats | None = None, ridge: float = RIDGE) -> Strengths:
    """Finds the strengths that make the votes most likely, by Newton's method, for many weightings of them at once.

    Args:
        votes: at least one.
        models: their number.
        weights: of each vote in each resample, of shape (B, V); None: each vote once, B = 1.
        ridge: half of it times the square of each parameter is taken from the log-likelihood.
    """
    rows, place = np.unique(np.stack([votes.left, votes.right, votes.shown], axis=1), axis=0, return_inverse=True)
    cells = np.zeros((len(votes), len(rows), 3))
    cells[np.arange(len(votes)), place.reshape(-1)] = _outcomes(votes)
    flat = cells.reshape(len(votes), -1)
    counts = flat.sum(axis=0, keepdims=True) if weights is None else weights @ flat
    beta = _newton(_design(rows, models), _possible(rows[:, 2]), counts.reshape(-1, len(rows), 3), ridge)
    return Strengths(beta[:, :models], beta[:, models], beta[:, models + 1])


def _outcomes(votes: PairVotes) -> Floats:
    """What each vote adds to LEFT, RIGHT and TIE, of shape (V, 3)."""
    added = np.eye(3)[votes.outcome]
    added[~votes.shown & (votes.outcome == TIE)] = 0.5, 0.5, 0
    return np.asarray(added * votes.weight[:, None])


def _possible(shown: Ints) -> Floats:
    """What is added to the logits of shape (rows, 3): without raters there is no tie to choose."""
    added = np.zeros((len(shown), 3))
    added[shown == 0, TIE] = -np.inf
    return added


def _design(rows: Ints, models: int) -> Floats:
    """Coefficients of θ, γ and ln ν in the logit of each outcome, of shape (rows, 3, models + 2)."""
    left, right, shown = rows.T
    number = np.arange(len(rows))
    design = np.zeros((len(rows), 3, models + 2))
    design[number, LEFT, left] = design[number, RIGHT, right] = 1
    design[number, TIE, left] = design[number, TIE, right] = 0.5
    design[number, LEFT, models], design[number, TIE, models] = shown, 0.5 * shown
    design[number, TIE, models + 1] = 1
    return design


def _newton(design: Floats, possible: Floats, counts: Floats, ridge: float) -> Floats:
    """Maximises the penalised log-likelihood for each of B arrays of counts; returns parameters of shape (B, P)."""
    rows, _, size = design.shape
    total = counts.sum(axis=2, keepdims=True)  # (B, rows, 1)
    flat = design.reshape(rows * 3, size)
    squares = (flat[:, :, None] * flat[:, None, :]).reshape(rows * 3, size * size)
    beta = np.zeros((len(counts), size))
    enough = 1e-9 * max(1.0, float(total.sum(axis=1).max()))
    for _ in range(_MOST_STEPS):
        expected = total * _softmax((beta @ flat.T).reshape(-1, rows, 3) + possible)
        gradient = (counts - expected).reshape(-1, rows * 3) @ flat - ridge * beta
        if np.abs(gradient).max() < enough:
            return beta
        means = np.matmul(expected.transpose(1, 0, 2), design)  # (rows, B, P)
        means = (means / np.sqrt(np.maximum(total.transpose(1, 0, 2), np.finfo(np.float64).tiny))).transpose(1, 0, 2)
        curvature = (expected.reshape(-1, rows * 3) @ squares).reshape(-1, size, size)
        curvature += ridge * np.eye(size) - means.transpose(0, 2, 1) @ means
        step = np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]
        # The first steps may overshoot where a model has won everything.
        beta += step * np.minimum(1, _LONGEST_STEP / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-300))
    raise ArithmeticError("the strengths of the models do not converge")


def _softmax(logits: Floats) -> Floats:
    raised = np.exp(logits - logits.max(axis=2, keepdims=True))
    return np.asarray(raised / raised.sum(axis=2, keepdims=True))


def log_likelihood(votes: PairVotes, theta: Sequence[float], gamma: float, log_nu: float) -> float:
    """Computes the logarithm of the likelihood of the votes, in nats, without the ridge."""
    rows = np.stack([votes.left, votes.right, votes.shown], axis=1)
    logits = _design(rows, len(theta)) @ np.array([*theta, gamma, log_nu]) + _possible(rows[:, 2])
    logs = np.log(np.maximum(_softmax(logits[None])[0], np.finfo(np.float64).tiny))
    return float((_outcomes(votes) * logs).sum())


def check_connected(left: Ints, right: Ints, names: Sequence[str]) -> None:
    """Refuses votes that fall into parts which no vote connects.

    Raises:
        Disconnected: with the names in each part.
    """
    part = list(range(len(names)))
    for one, other in zip(left.tolist(), right.tolist(), strict=True):
        before, after = part[one], part[other]
        part = [after if number == before else number for number in part]
    parts = [[name for name, of in zip(names, part, strict=True) if of == number] for number in dict.fromkeys(part)]
    if len(parts) > 1:
        listed = " | ".join(", ".join(names) for names in parts)
        raise Disconnected(f"no vote connects these models: {listed}; strengths need votes between the parts")


def elo_half_width(votes: int) -> float:
    """Half of the 95% interval of the difference between two about equal models, in Elo points, ties left out.

    Each vote gives 1/4 of Fisher information on the difference of θ, so its standard error is 2 / √votes.
    """
    return 1.959963984540054 * ELO * 2 / math.sqrt(votes)

"""The bound of a masked model against enumeration, MDLM's estimator and a known distribution; its draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from eval.reading.bound import BoundReader, Draws
from eval.reading.ranked import RankedReader
from eval.reading.scoring import BatchSize
from eval.reading.windows import Window
from pretrain.denoising.denoise import Denoiser
from pretrain.parallel.lockstep import Lockstep
from tests.parts.toy_predictors import Inconsistent, Joint, random_joint
from tests.parts.training_run import as_ranks

RANDOM = np.random.default_rng(0)


def reader(toy: Joint, draws: int = 16, seed: int = 0, tokens: int = 64, rows: int | None = None) -> BoundReader:
    denoiser = Denoiser(toy, toy.vocab_size)
    return BoundReader(toy, toy.vocab_size, "fp32", denoiser, Draws(draws, seed), BatchSize(tokens, rows))


def row_of(toy: Joint) -> np.ndarray:
    return np.array([toy.begin, *RANDOM.integers(0, toy.ids, toy.length)])


def test_bound_of_all_sets_is_the_mean_over_all_orders() -> None:
    toy = Inconsistent(random_joint(3, 4))
    for _ in range(5):
        row = row_of(toy)
        score = reader(toy, draws=7).score([Window(row, 3)])[0]
        assert score.nats == pytest.approx(toy.mean_nats(row, [1, 2, 3]), rel=1e-6)
        assert score.variance == 0


def test_bound_of_a_consistent_model_is_exact_where_the_last_token_need_not_be_seen() -> None:
    """The last token is never an input, so of dependent tokens the bound is above."""
    first, last = RANDOM.dirichlet(np.ones(4)), RANDOM.dirichlet(np.ones(4))
    toy = Joint(np.multiply.outer(first, last))
    row = row_of(toy)
    exact = -np.log(toy.joint[tuple(row[1:])])
    assert reader(toy, draws=3).score([Window(row, 2)])[0].nats == pytest.approx(exact, rel=1e-6)
    mixed = Joint(random_joint(2, 4))
    window = Window(np.array([mixed.begin, 1, 2]), 2)
    bounds = [
        reader(mixed, draws=3).score([Window(np.array([mixed.begin, a, b]), 2)])[0].nats
        for a in range(4)
        for b in range(4)
    ]
    assert np.exp(-np.array(bounds)).sum() < 1, "a bound gives each text less than a distribution does"
    assert reader(mixed, draws=3).score([window])[0].nats in bounds


def test_one_scored_token_is_exact_and_context_is_never_masked() -> None:
    toy = Joint(random_joint(3, 4))
    row = row_of(toy)
    score = reader(toy).score([Window(row, 1)])[0]
    a, b, c = row[1:]
    conditional = toy.joint[a, b] / toy.joint[a, b].sum()
    assert score.nats == pytest.approx(-np.log(conditional[c]), rel=1e-6) and score.variance == 0
    assert score.greedy == (conditional.argmax() == c)
    assert toy.read == [tuple(row[:-1])], "one pass, with all of its context"


def test_targets_of_weight_0_are_context_and_the_others_weigh() -> None:
    toy = Inconsistent(random_joint(3, 4))
    row = row_of(toy)
    score = reader(toy).score([Window(row, 3, np.array([2.0, 0.0, 2.0]))])[0]
    assert score.nats == pytest.approx(2 * toy.mean_nats(row, [1, 3]), rel=1e-6)
    assert all(read[2] == row[2] for read in toy.read)
    assert reader(toy).score([Window(row, 3, np.zeros(3))])[0].nats == 0


def test_draws_spread_the_number_of_masks_evenly_and_weigh_like_mdlm() -> None:
    """Each number is drawn equally often; the mean of a target's weight is 1, and 1 / (k C(n, k)) for each set."""
    window = Window(np.arange(65), 64)
    for seed in range(20):
        draws = Draws(16, seed).of(window)
        counts = [len(draw.places) for draw in draws]
        assert all(4 * number + 1 <= count <= 4 * number + 5 for number, count in enumerate(counts))
        assert all(draw.places.min() >= 1 and len(set(draw.places)) == len(draw.places) for draw in draws)
    weight = np.zeros(64)
    for seed in range(150):
        for draw in Draws(16, seed).of(window):
            weight[draw.places - 1] += draw.factor / 150
    assert weight.mean() == pytest.approx(1, rel=1e-9) and weight.std() < 0.12
    sets: dict[tuple[int, ...], float] = {}
    for seed in range(1500):
        for draw in Draws(6, seed).of(Window(np.arange(4), 3)):
            key = tuple(draw.places)
            sets[key] = sets.get(key, 0.0) + draw.factor / 1500
    exact = {tuple(draw.places): draw.factor for draw in Draws(7, 0).of(Window(np.arange(4), 3))}
    assert sets.keys() == exact.keys() and sets == pytest.approx(exact, rel=0.1)


def test_bound_by_draws_has_the_mean_of_mdlms_estimator_and_an_honest_variance() -> None:
    """MDLM (arXiv:2406.07524) draws t from (0, 1), masks each target with probability t and weighs by 1 / t."""
    toy = Inconsistent(random_joint(6, 3))
    row = row_of(toy)
    window = Window(row, 6)
    exact = reader(toy, draws=63).score([window])[0].nats
    nats = {}
    for draw in Draws(63, 0).of(window):
        hidden = row.copy()
        hidden[draw.places] = toy.mask_id
        logits = [toy.logits_of(hidden[:-1], place) for place in draw.places]
        nats[tuple(draw.places)] = sum(
            np.log(np.exp(own).sum()) - own[row[place]] for own, place in zip(logits, draw.places, strict=True)
        )
    random, estimates = np.random.default_rng(1), []
    for _ in range(10_000):
        t = random.uniform()
        masked = tuple(1 + np.flatnonzero(random.uniform(size=6) < t))
        estimates.append(nats.get(masked, 0.0) / t)
    error = np.std(estimates) / 100
    assert np.mean(estimates) == pytest.approx(exact, abs=4 * error)
    scores = [reader(toy, draws=8, seed=seed).score([window])[0] for seed in range(400)]
    ours = np.array([score.nats for score in scores])
    assert ours.mean() == pytest.approx(exact, abs=4 * ours.std() / 20)
    assert ours.var() < np.var(estimates) / 8, "stratified draws are better than as many of MDLM's"
    stated = np.mean([score.variance for score in scores])
    assert 0.7 < stated / ours.var() < 2, "the variance that a score states is that over seeds"


def test_greedy_fills_in_the_surest_first() -> None:
    joint = np.full((2, 2), 0.01)
    joint[0, 1] = 0.97
    toy = Joint(joint)
    found = [reader(toy).score([Window(np.array([toy.begin, a, b]), 2)])[0].greedy for a in (0, 1) for b in (0, 1)]
    assert found == [False, True, False, False]


def asked(toy: Joint) -> list[Window]:
    rows = [row_of(toy)[: 1 + length] for length in (8, 8, 5, 2, 8, 7, 3, 1)]
    scored = [8, 3, 5, 1, 6, 7, 2, 1]
    return [Window(row, n) for row, n in zip(rows, scored, strict=True)]


def test_scores_do_not_depend_on_batches_order_or_ranks() -> None:
    toy = Inconsistent(random_joint(8, 2))
    windows = asked(toy)
    wanted = reader(toy).score(windows)
    assert reader(toy, tokens=8).score(windows) == wanted == reader(toy, rows=1).score(windows)
    assert reader(toy).score(windows[::-1]) == wanted[::-1]
    assert reader(toy, seed=1).score(windows) != wanted

    def of(ranks: Any, gather: Any) -> Any:
        return RankedReader(reader(toy), Lockstep(ranks.rank, ranks.count, gather)).score(windows)

    assert as_ranks(2, of) == [wanted, wanted]


def test_logits_that_are_not_finite_are_refused() -> None:
    class Broken(Joint):
        def logits_of(self, row: np.ndarray, place: int) -> np.ndarray:
            return np.full(self.ids, np.nan)

    with pytest.raises(ValueError, match="no finite probabilities"):
        reader(Broken(random_joint(2, 3))).score([Window(np.array([4, 1, 2]), 2)])
    with pytest.raises(ValueError, match="no reward model"):
        reader(Joint(random_joint(2, 3))).rewards([[1]])
    assert torch.is_inference_mode_enabled() is False

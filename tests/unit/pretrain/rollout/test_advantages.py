"""Tests of `pretrain.rollout.advantages`: definitions, masks, and what rounding must not do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pretrain.rollout.advantages import answer_advantages, generalised_advantages, has_variance, whitened


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_baselines_are_the_published_ones() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.5, 0.0], [2.0, 2.0, 2.0, 3.0]])
    group = answer_advantages(rewards, "group")
    assert torch.allclose(group[0], torch.tensor([0.625, -0.375, 0.125, -0.375], dtype=torch.float64))
    leave_one_out = answer_advantages(rewards, "leave_one_out")
    for prompt in range(2):
        for sample in range(4):
            others = [float(rewards[prompt, other]) for other in range(4) if other != sample]
            assert float(leave_one_out[prompt, sample]) == pytest.approx(
                float(rewards[prompt, sample]) - sum(others) / 3, abs=1e-12
            )
    assert torch.allclose(leave_one_out, group * 4 / 3)  # an identity of both
    assert torch.allclose(answer_advantages(rewards, "batch"), rewards.double() - 10.5 / 8)


@pytest.mark.parametrize("baseline", ["group", "leave_one_out"])
@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_equal_rewards_have_an_advantage_of_exactly_nothing(baseline: str, scale: str) -> None:
    """0.1 + 0.1 + 0.1 is not 0.3: a mean of equal numbers may differ from them, and 1e-17 / 1e-4 would be a signal."""
    rewards = torch.tensor([[0.1] * 7, [0.7] * 7, [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 1.0]])
    advantages = answer_advantages(rewards, baseline, scale)  # type: ignore[arg-type]
    assert not advantages[:2].any() and advantages[2].all()
    assert has_variance(rewards).tolist() == [False, False, True]
    assert not answer_advantages(torch.full((3, 7), 0.1), "batch", scale).any()  # type: ignore[arg-type]


def test_scale_divides_by_the_deviation_of_a_sample() -> None:
    rewards = draw(3, 5)
    group = answer_advantages(rewards, "group", "group")
    assert torch.allclose(group, answer_advantages(rewards, "group") / (rewards.std(dim=1, keepdim=True) + 1e-4))
    batch = answer_advantages(rewards, "group", "batch")
    assert torch.allclose(batch, answer_advantages(rewards, "group") / (rewards.std() + 1e-4))


def test_one_answer_has_no_others() -> None:
    with pytest.raises(ValueError, match="at least 2 answers per prompt"):
        answer_advantages(torch.ones(3, 1), "group")
    assert answer_advantages(torch.tensor([[1.0], [0.0]]), "batch").tolist() == [[0.5], [-0.5]]


def by_definition(
    rewards: list[float], values: list[float], gamma: float, lam: float
) -> tuple[list[float], list[float]]:
    """Equation 16 of arXiv:1506.02438, a double sum over the drawn targets of one row."""
    following = [*values, 0.0][1:]
    surprises = [r + gamma * after - v for r, v, after in zip(rewards, values, following, strict=True)]
    count = len(rewards)
    advantages = [sum((gamma * lam) ** (s - t) * surprises[s] for s in range(t, count)) for t in range(count)]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_generalised_advantages_are_the_double_sum_over_drawn_targets(gamma: float, lam: float) -> None:
    rewards, values = draw(6, 11, seed=1), draw(6, 11, seed=2)
    mask = torch.rand(6, 11, generator=torch.Generator().manual_seed(3)) < 0.6
    mask[5] = False  # a row without a drawn target
    advantages, returns = generalised_advantages(rewards, values, mask, gamma, lam)
    for row in range(6):
        drawn = [column for column in range(11) if mask[row, column]]
        wanted = by_definition(
            [float(rewards[row, c]) for c in drawn], [float(values[row, c]) for c in drawn], gamma, lam
        )
        assert advantages[row, mask[row]].tolist() == pytest.approx(wanted[0], abs=1e-12)
        assert returns[row, mask[row]].tolist() == pytest.approx(wanted[1], abs=1e-12)
    assert not advantages[~mask].any() and not returns[~mask].any()


@pytest.mark.parametrize("junk", [1e9, math.nan, math.inf])
def test_what_stands_at_prompt_tool_and_padding_changes_nothing(junk: float) -> None:
    rewards, values = draw(2, 9, seed=4), draw(2, 9, seed=5)
    mask = torch.tensor([[0, 0, 1, 1, 0, 0, 1, 1, 0], [0, 1, 1, 1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    clean = generalised_advantages(rewards * mask, values * mask, mask)
    for filled in (rewards, values):
        filled[~mask] = junk
    spoilt = generalised_advantages(rewards, values, mask)
    assert torch.equal(clean[0], spoilt[0]) and torch.equal(clean[1], spoilt[1])


def test_whitening_is_over_the_mask_alone() -> None:
    advantages = draw(4, 6, seed=6)
    mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(7)) < 0.5
    advantages[~mask] = math.nan
    white = whitened(advantages, mask)
    assert float(white[mask].mean()) == pytest.approx(0, abs=1e-12)
    assert float(white[mask].std()) == pytest.approx(1, abs=1e-6)
    assert not white[~mask].any()
    assert not whitened(advantages, torch.zeros_like(mask)).any()

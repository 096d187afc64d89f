"""Tests of `pretrain.objectives.policy_terms`: the clip by its four cases, the estimators by their expectation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from configs.schema.model import Model
from configs.schema.objectives import GroupPolicy
from pretrain.model.transformer import Transformer
from pretrain.objectives.policy import PolicyLoss
from pretrain.objectives.policy_terms import clipped_loss, divergence, divergence_loss


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.5, 2.0, -2.0 * 1.28, True),  # may rise no further
        (1.5, -2.0, 3.0, False),  # must fall
        (0.5, 2.0, -1.0, False),  # must rise
        (0.5, -2.0, 2.0 * 0.8, True),  # may fall no further
        (1.25, 1.0, -1.25, False),  # the upper bound is another one
    ],
)
def test_clip(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    new = torch.tensor([math.log(ratio)], requires_grad=True)
    got, cut = clipped_loss(new, torch.zeros(1), torch.tensor([advantage]), (0.2, 0.28))
    assert float(got) == pytest.approx(loss, abs=1e-6) and bool(cut) is clipped
    got.sum().backward()
    assert float(new.grad) == pytest.approx(0.0 if clipped else -ratio * advantage, abs=1e-6)  # type: ignore[arg-type]


def expected_gradient(estimator: str, corrected: bool) -> tuple[float, Tensor, float, Tensor]:
    """Of one token among five: the mean of an estimator and its gradient, both weighted with the policy."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, dtype=torch.float64, generator=generator, requires_grad=True)
    reference = torch.randn(5, dtype=torch.float64, generator=generator).log_softmax(0)
    log_probs = logits.log_softmax(0)
    exact = (log_probs.exp() * (log_probs - reference)).sum()
    (wanted,) = torch.autograd.grad(exact, logits, retain_graph=True)
    value = (log_probs.exp() * divergence(log_probs, reference, estimator)).sum()  # type: ignore[arg-type]
    terms = (
        divergence_loss(log_probs, log_probs.detach(), reference, estimator)  # type: ignore[arg-type]
        if corrected
        else divergence(log_probs, reference, estimator)  # type: ignore[arg-type]
    )
    (got,) = torch.autograd.grad((log_probs.detach().exp() * terms).sum(), logits)
    return float(exact), wanted, float(value), got


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_gradient_of_every_estimator_is_that_of_the_divergence(estimator: str) -> None:
    exact, wanted, value, got = expected_gradient(estimator, corrected=True)
    assert torch.allclose(got, wanted, atol=1e-12)
    assert (value == pytest.approx(exact, abs=1e-12)) is (estimator != "k2")  # k2's value is biased


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_without_the_ratio_the_gradient_is_another_one(estimator: str) -> None:
    """Negative: what frameworks did. k1 has none at all, k3 that of KL(reference || policy)."""
    _, wanted, _, got = expected_gradient(estimator, corrected=False)
    assert (got - wanted).abs().max() > 0.05
    if estimator == "k1":
        assert got.abs().max() < 1e-12


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_divergence_of_a_policy_from_itself_is_nothing(estimator: str) -> None:
    log_probs = torch.randn(3, 4).sub(3)
    assert not divergence(log_probs, log_probs, estimator).any()  # type: ignore[arg-type]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_what_is_not_learnt_may_be_as_unlikely_as_it_likes(estimator: str) -> None:
    """At a low temperature a prompt's tokens have a probability of 0: 0 x infinity must not reach the loss."""
    torch.manual_seed(0)
    config = Model(num_layers=1, hidden_size=16, num_heads=2, context_length=8, dropout=0.0)
    kl = {"coefficient": 0.1, "where": "loss", "estimator": estimator}
    rollout = {"max_new_tokens": 4, "samples": 2, "temperature": 0.001}
    settings = GroupPolicy.model_validate({"kind": "grpo", "rewards": {"format": 1.0}, "kl": kl, "rollout": rollout})
    module = PolicyLoss(Transformer(config, 12), None, settings)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    tokens, targets = torch.randint(12, (2, 5)), torch.randint(12, (2, 5))
    log_probs = module.per_target(tokens, targets, torch.ones(2, 5))[0].detach()
    assert log_probs.min() < -1000
    weights = (log_probs > -50).float()
    weights[0, 0] = 1.0
    columns = {
        "advantage": torch.ones(2, 5),
        "sampled": log_probs,
        "reference": log_probs,
        "token_share": torch.ones(2),
    }
    found = module.loss(tokens, targets, weights, None, **columns)
    assert torch.isfinite(found).all()
    found[0].backward()
    assert all(parameter.grad is None or torch.isfinite(parameter.grad).all() for parameter in module.parameters())

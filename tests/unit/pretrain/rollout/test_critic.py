"""The critic's loss is the published one, and PPO's whole loss the sum of both."""

from __future__ import annotations

import pytest
import torch

from configs.schema.model import Model
from configs.schema.objectives import ProximalPolicy
from pretrain.model.transformer import Transformer
from pretrain.objectives.critic import ProximalLoss, value_loss
from pretrain.objectives.policy import PolicyLoss

ROLLOUT = {"max_new_tokens": 4, "samples": 2}


@pytest.mark.parametrize(
    ("value", "old", "target", "clip", "loss"),
    [
        (0.5, 0.0, 1.0, None, 0.125),
        (0.5, 0.0, 1.0, 0.2, 0.32),  # at most 0.2 of the way counts: (0.2 - 1)^2 / 2 is the larger error
        (0.1, 0.0, 1.0, 0.2, 0.405),  # within the bound both are the same
        (2.0, 1.0, 0.0, 0.2, 2.0),  # away from the target the value itself is the larger error
    ],
)
def test_value_loss(value: float, old: float, target: float, clip: float | None, loss: float) -> None:
    """max((v - R)^2, (clip(v, old - c, old + c) - R)^2) / 2, as in openai/baselines ppo2."""
    found = value_loss(torch.tensor([value]), torch.tensor([old]), torch.tensor([target]), clip)
    assert float(found) == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("kind", ["separate", "shared"])
def test_the_loss_is_that_of_the_policy_and_the_critics(kind: str) -> None:
    torch.manual_seed(0)
    config = Model(num_layers=1, hidden_size=16, num_heads=2, context_length=8, dropout=0.0, tied_embeddings=False)
    settings = ProximalPolicy.model_validate(
        {"kind": "ppo", "critic": kind, "rewards": {"format": 1.0}, "value_coefficient": 0.7, "rollout": ROLLOUT}
    )
    module = ProximalLoss(Transformer(config, 12), None, settings)
    with torch.no_grad():
        for name, parameter in module.value.named_parameters():
            torch.nn.init.normal_(parameter, std=0.3) if "norm" not in name else torch.nn.init.ones_(parameter)
    assert not any("lm_head" in name for name, _ in module.value.named_parameters())  # it predicts no token
    tokens, targets = torch.randint(12, (2, 5)), torch.randint(12, (2, 5))
    weights = torch.tensor([[0.0, 1, 1, 0, 1], [0, 0, 1, 1, 0]])
    columns = {name: torch.randn(2, 5) for name in ("advantage", "sampled", "old", "return", "old_value")}
    columns["token_share"] = torch.ones(2)
    log_probs, values = module.per_target(tokens, targets, weights)
    junk = {name: torch.where(weights > 0, value, torch.nan) for name, value in columns.items() if value.dim() == 2}
    sums = module.loss(tokens, targets, weights, None, **(columns | junk))
    policy = PolicyLoss.loss(module, tokens, targets, weights, None, **columns)
    error = value_loss(values, columns["old_value"], columns["return"], 0.2)
    assert torch.allclose(sums[0], policy[0] + 0.7 * (error * weights).sum(), atol=1e-6)
    assert torch.allclose(sums[-2:], torch.stack([(error * weights).sum(), (values * weights).sum()]), atol=1e-6)
    assert len(sums) == 1 + len(module.stat_names)
    sums[0].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())
    again = PolicyLoss(module.model, None, settings).per_target(tokens, targets, weights)[0]
    assert torch.equal(log_probs, again)

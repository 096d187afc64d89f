"""AdamW: what is decayed, and the update against the published algorithm in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from configs.model_section import Model
from configs.train_sections import Optimizer
from pretrain.model import Transformer
from pretrain.optim import build_optimizer, parameter_groups

SETTINGS = Optimizer(lr=0.01, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1)


def small(family: str, tied: bool) -> Transformer:
    torch.manual_seed(0)
    shape = {"num_layers": 2, "hidden_size": 16, "num_heads": 2, "context_length": 8}
    return Transformer(Model(family=family, tied_embeddings=tied, qk_norm=family == "llama", **shape), 24)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_matrices_are_decayed_and_nothing_else(family: str, tied: bool) -> None:
    model = small(family, tied)
    decayed, free = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert all(name.endswith("bias") or "norm" in name for name in free["names"])
    assert not any(name.endswith("bias") or "norm" in name for name in decayed["names"])
    assert {"embed.weight", "blocks.0.attention.qkv.weight"} <= set(decayed["names"])
    named = dict(model.named_parameters())
    together = decayed["names"] + free["names"]
    assert sorted(together) == sorted(named) and ("lm_head.weight" in together) != tied
    for group in (decayed, free):
        assert [named[name] is value for name, value in zip(group["names"], group["params"], strict=True)]
    assert sum(value.numel() for group in (decayed, free) for value in group["params"]) == model.parameter_count().total


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    model = small("llama", True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "norm" not in name and name != "embed.weight"
    (only,) = parameter_groups(model, 0.1)
    assert "embed.weight" not in only["names"] and only["weight_decay"] == 0.1


def gradient_step(model: Transformer, step: int) -> None:
    tokens = torch.randint(0, 24, (4, 8), generator=torch.Generator().manual_seed(step))
    model.zero_grad()
    F.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(1, 1).flatten()).backward()


def test_equals_the_published_algorithm() -> None:
    """Loshchilov and Hutter, arXiv:1711.05101, algorithm 2, in float64 on the same gradients."""
    model = small("gpt2", True)
    optimizer = build_optimizer(model, SETTINGS)
    assert isinstance(optimizer, torch.optim.AdamW)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    values = [p.detach().double() for p in model.parameters()]
    first, second = ([torch.zeros_like(value) for value in values] for _ in range(2))
    for step in range(1, 21):
        for group in optimizer.param_groups:
            group["lr"] = rate = 0.01 / step  # as a schedule sets it
        gradient_step(model, step)
        for index, parameter in enumerate(model.parameters()):
            assert parameter.grad is not None
            grad = parameter.grad.double()
            first[index] = 0.9 * first[index] + 0.1 * grad
            second[index] = 0.95 * second[index] + 0.05 * grad**2
            mean, square = first[index] / (1 - 0.9**step), second[index] / (1 - 0.95**step)
            values[index] -= rate * (mean / (square.sqrt() + 1e-8) + decay[id(parameter)] * values[index])
        optimizer.step()
    for parameter, value in zip(model.parameters(), values, strict=True):
        torch.testing.assert_close(parameter.detach().double(), value, atol=2e-5, rtol=1e-4)


def test_fused_equals_the_plain_loop_of_torch() -> None:
    plain, fused = small("llama", False), small("llama", False)
    groups = parameter_groups(plain, SETTINGS.weight_decay)
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8, foreach=False, fused=False)
    optimizer = build_optimizer(fused, SETTINGS)
    for step in range(10):
        for model, rule in ((plain, reference), (fused, optimizer)):
            gradient_step(model, step)
            rule.step()
    for a, b in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)

"""AdamW: what is decayed, and the update against the published algorithm in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from configs.schema.model import Model
from configs.schema.train import MuonPolicy, Optimizer
from pretrain.model.transformer import Transformer
from pretrain.optimizer.groups import build_optimizer, matrices, parameter_groups
from pretrain.optimizer.muon import orthogonalize

SETTINGS = Optimizer(lr=0.01, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1)


def small(family: str, tied: bool) -> Transformer:
    torch.manual_seed(0)
    shape = {"num_layers": 2, "hidden_size": 16, "num_heads": 2, "context_length": 8}
    return Transformer(Model(family=family, tied_embeddings=tied, qk_norm=family == "llama", **shape), 24)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_matrices_are_decayed_and_nothing_else(family: str, tied: bool) -> None:
    model = small(family, tied)
    decayed, free = parameter_groups(model, SETTINGS)
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
    (only,) = parameter_groups(model, SETTINGS)
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
    groups = parameter_groups(plain, SETTINGS)
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8, foreach=False, fused=False)
    optimizer = build_optimizer(fused, SETTINGS)
    for step in range(10):
        for model, rule in ((plain, reference), (fused, optimizer)):
            gradient_step(model, step)
            rule.step()
    for a, b in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (32, 96)])
def test_orthogonal_matrices_have_singular_values_near_one(rows: int, columns: int) -> None:
    x = torch.randn(3, rows, columns, generator=torch.Generator().manual_seed(0))
    x[2] = x[2, :, :1] * x[2, :1]  # of rank 1: the other singular values stay at zero
    made = orthogonalize(x / x.norm(dim=(1, 2), keepdim=True), 5)
    values = torch.linalg.svdvals(made)
    assert values[:2].max() < 1.3 and values[:2].median() > 0.7
    assert values[2, 0] > 0.65 and values[2, 1:].max() < 1e-3
    # The singular vectors stay.
    left, _, right = torch.linalg.svd(x[0], full_matrices=False)
    rotated = left.T @ made[0] @ right.T
    torch.testing.assert_close(rotated, torch.diag(rotated.diagonal()), atol=1e-4, rtol=0)


def test_polar_express_comes_closer_to_one_with_each_step() -> None:
    """The published algorithm is exact in the limit, for singular values from 0.001 of the largest possible on."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(48, 48, generator=generator, dtype=torch.float64))[0] for _ in range(2))
    values = torch.logspace(-3, 0, 48, dtype=torch.float64)
    x = (left * values @ right / values.norm()).unsqueeze(0)
    errors = [(torch.linalg.svdvals(orthogonalize(x, steps, "polar_express")) - 1).abs().max() for steps in (3, 5, 8)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3
    torch.testing.assert_close(orthogonalize(x, 9, "polar_express")[0], left @ right, atol=1e-4, rtol=0)
    spread = torch.randn(1, 32, 96, generator=generator)
    spread /= spread.norm()
    best = [
        (torch.linalg.svdvals(orthogonalize(spread, steps, kind)) - 1).abs().max()
        for kind, steps in (("jordan", 5), ("polar_express", 5))
    ]
    assert best[1] < best[0] / 2


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = small("llama", False)
    settings = Optimizer(name="muon", lr=0.01, embedding_lr=0.03, muon=MuonPolicy(lr=0.05, weight_decay=0.2))
    groups = parameter_groups(model, settings)
    found = {name: group for group in groups for name in group["names"]}
    assert len(found) == len(list(model.named_parameters()))
    for name, parameter in model.named_parameters():
        group = found[name]
        inside = name.startswith("blocks.") and parameter.ndim == 2
        assert group["rule"] == ("muon" if inside else "adamw")
        expected = 0.05 if inside else 0.03 if name == "embed.weight" else 0.01
        assert (group["lr"], group["ratio"]) == (expected, expected / 0.01)
    assert {group["weight_decay"] for group in groups if group["rule"] == "muon"} == {0.2}
    parts = matrices(model)
    assert [
        len(parts[f"blocks.0.{name}.weight"]) for name in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
    ] == [3, 1, 2, 1]
    assert all(sum(matrix.numel for matrix in parts[name]) == model.get_parameter(name).numel() for name in parts)

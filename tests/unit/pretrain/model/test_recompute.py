"""Activation checkpointing: the same gradients to the bit, with less kept for the backward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from configs.schema.model import Model
from pretrain.model.transformer import Transformer
from tests.parts.training_run import tiny_recipe

SHAPE: dict[str, Any] = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "context_length": 16}
SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2 with dropout": {"family": "gpt2", "dropout": 0.3},
    "llama": {"family": "llama", "num_kv_heads": 2},
    "qwen3 with dropout": {"family": "llama", "qk_norm": True, "head_dim": 12, "dropout": 0.3},
}
MODES = ("selective", "full")


def transformer(**settings: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(Model(**{**SHAPE, **settings}, init_std=0.2), 40).train()


def gradients(model: Transformer, forward: Any) -> list[Tensor]:
    torch.manual_seed(3)
    model.zero_grad()
    forward(torch.arange(32).view(2, 16) % 40).float().square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_the_same_to_the_bit(name: str, mode: str) -> None:
    model = transformer(**SETTINGS[name])
    plain = gradients(model, model)
    assert len(plain) == len(list(model.parameters()))
    model.activation_checkpointing = mode
    for a, b in zip(plain, gradients(model, model), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_it_compiles_whole(mode: str) -> None:
    model = transformer(dropout=0.3)
    model.activation_checkpointing = mode
    eager = gradients(model, model)
    torch._dynamo.reset()
    for a, b in zip(eager, gradients(model, torch.compile(model, backend="aot_eager", fullgraph=True)), strict=True):
        assert torch.equal(a, b)


def kept_bytes(mode: str, **settings: Any) -> int:
    """What is allocated in a forward pass and still there after it: saved tensors and selective's own store."""
    model = transformer(**{"hidden_size": 64, "num_layers": 3, **settings})
    model.activation_checkpointing = mode
    tokens = torch.arange(256).view(16, 16) % 40
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        hidden = model.backbone(tokens)
    assert hidden.requires_grad
    return sum(int(event.self_cpu_memory_usage) for event in seen.key_averages())


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_less_is_kept(name: str) -> None:
    none, selective, full = (kept_bytes(mode, **SETTINGS[name]) for mode in ("none", *MODES))
    assert selective < 0.6 * none
    assert full < 0.15 * none


def test_true_and_false_of_old_recipes(tmp_path: Path) -> None:
    for written, meant in ((True, "full"), (False, "none"), ("selective", "selective")):
        assert tiny_recipe(tmp_path, tmp_path, activation_checkpointing=written).train.activation_checkpointing == meant

"""Every objective can be measured and checked without data: a made-up batch gives it a loss and a gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema.recipe import Recipe
from pretrain.batches.source import drawn_batch
from pretrain.model.transformer import Transformer
from pretrain.objectives.chosen import make_objective

RL: dict[str, Any] = {"rewards": {"format": 1.0}, "rollout": {"prompts": 2, "samples": 2}}
OBJECTIVES: dict[str, dict[str, Any] | None] = {
    "language modelling": None,
    "sft": {"kind": "sft"},
    "reward": {"kind": "reward", "margin": True},
    "dpo": {"kind": "dpo"},
    "orpo": {"kind": "dpo", "loss": "orpo"},
    "grpo": {"kind": "grpo", **RL},
    "grpo with divergence": {"kind": "grpo", "kl": {"coefficient": 0.1, "where": "loss"}, **RL},
    "ppo": {"kind": "ppo", **RL},
    "ppo, one model": {"kind": "ppo", "critic": "shared", **RL},
}
ROWS, WIDTH, VOCAB = 4, 12, 50


def recipe_with(objective: dict[str, Any] | None, tmp_path: Path) -> Recipe:
    kind = objective["kind"] if objective else "text"
    shape = {"text": "text", "reward": "pairs", "dpo": "pairs"}.get(kind, "gsm8k")
    tokenizer = {"kind": "byte"} | ({"special_tokens": "chat"} if objective else {})
    return Recipe.model_validate(
        {
            "name": "tiny",
            "out": str(tmp_path),
            "data": {"sources": [{"name": "none", "path": "none", "shape": shape}], "tokenizer": tokenizer},
            "model": {
                "num_layers": 1,
                "hidden_size": 16,
                "num_heads": 2,
                "context_length": WIDTH,
                "position": "learned",
            },
            "train": {"steps": 1, "global_batch_size": ROWS, "objective": objective, "loss_chunk": 5},
        }
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_made_up_batch_has_a_loss_and_a_gradient(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = recipe_with(OBJECTIVES[name], tmp_path)
    objective = make_objective(recipe)
    module = objective.module(Transformer(recipe.model, VOCAB))
    for key, value in module.named_weights():
        with torch.no_grad():
            module.init_parameter(key, value)
    batch = objective.made_up(drawn_batch(ROWS, WIDTH, VOCAB, seed=1))
    whole = module(*batch.inputs, **batch.columns).reshape(-1)
    assert len(whole) == 1 + len(module.stat_names) and whole.isfinite().all() and whole[0] != 0
    gradients = torch.autograd.grad(whole[0], list(module.model.parameters()), allow_unused=True)
    norms = [float(gradient.norm()) for gradient in gradients if gradient is not None]
    assert all(map(torch.isfinite, map(torch.tensor, norms)))
    # The head of a new reward model is zero: the first step moves the head alone.
    assert any(norms) or name == "reward"
    parts = [batch.rows(start, start + module.unit_rows) for start in range(0, ROWS, module.unit_rows)]
    summed = sum(module(*part.inputs, **part.columns).reshape(-1) for part in parts)
    torch.testing.assert_close(summed, whole, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_loss_stays_on_the_device_of_its_weights(name: str, tmp_path: Path) -> None:
    """On the meta device, where an operation with a tensor of the CPU is an error, as it is on a GPU."""
    recipe, device = recipe_with(OBJECTIVES[name], tmp_path), torch.device("meta")
    objective = make_objective(recipe)
    with device:
        model = Transformer(recipe.model, VOCAB)
    module = objective.module(model)
    assert all(parameter.is_meta for parameter in module.parameters()), "what it adds is where the model is"
    module.chunk = None
    batch = objective.made_up(drawn_batch(ROWS, WIDTH, VOCAB, seed=1)).to(device)
    sums = module(*batch.inputs, **batch.columns)
    assert sums.is_meta and sums.numel() == 1 + len(module.stat_names)

"""Parameters and operations by formula, against the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from configs.schema.model import Model
from configs.schema.recipe import load
from pretrain.model.transformer import Transformer
from pretrain.sizes.embedding_rows import embedding_rows
from pretrain.sizes.flops import count_parameters, flops_per_token

RECIPES = sorted((Path(__file__).resolve().parents[4] / "configs").glob("*.yaml"))
SHAPES: list[dict[str, Any]] = [
    {"family": "gpt2", "num_layers": 3},
    {"family": "gpt2", "bias": False, "qk_norm": True, "position": "rope"},
    {"family": "llama", "num_heads": 4, "num_kv_heads": 2, "head_dim": 20, "hidden_size": 64, "qk_norm": True},
    {"family": "llama", "activation": "relu2", "value_residual": True, "zero_init": True, "logit_softcap": 15.0},
    {"family": "llama", "norm": "layernorm", "bias": True, "tied_embeddings": True, "position": "learned"},
]


def agree(config: Model, rows: int) -> None:
    with torch.device("meta"):
        model = Transformer(config, rows)
    assert count_parameters(config, rows) == model.parameter_count()


@pytest.mark.parametrize("settings", SHAPES, ids=lambda settings: "-".join(map(str, settings.values())))
def test_every_setting_is_counted(settings: dict[str, Any]) -> None:
    agree(Model(**settings), 100)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_counted(path: Path) -> None:
    recipe = load(path)
    agree(recipe.model, embedding_rows(recipe) or 300)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_cost_what_is_counted(path: Path) -> None:
    """Two layers on the meta device: the operations of each matrix product, both ways, without making them."""
    recipe = load(path)
    rows, config = embedding_rows(recipe) or 300, recipe.model.model_copy(update={"num_layers": 2})
    with torch.device("meta"):
        model = Transformer(config, rows)
        text = torch.zeros(1, config.context_length, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(text).sum().backward()
    assert counter.get_total_flops() / text.numel() == pytest.approx(flops_per_token(config, rows), rel=0.01)


def test_published_operations() -> None:
    """GPT-3 6.7B, whose training took 1.20e22 operations at 300 B tokens by 6 N alone (arXiv:2005.14165, table D.1)."""
    config = Model(family="gpt2", num_layers=32, hidden_size=4096, num_heads=32, context_length=2048)
    attention = 12 * 32 * 4096 * 2048
    assert (flops_per_token(config, 50257) - attention) * 300e9 == pytest.approx(1.20e22, rel=0.02)

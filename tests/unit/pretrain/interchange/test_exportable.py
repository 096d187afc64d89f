"""What cannot be exported is known from the recipe alone, by the names of its keys."""

from __future__ import annotations

from typing import Any

import pytest

from configs.schema.data import Data
from configs.schema.model import Model
from configs.schema.recipe import Recipe
from configs.schema.sources import Source
from configs.schema.train import Train
from pretrain.interchange.exportable import export_problems


def recipe(**model: Any) -> Recipe:
    data = Data(sources=[Source(name="text", path="/nowhere.txt")])
    return Recipe(name="r", data=data, model=Model(**model), train=Train(steps=1))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"logit_softcap": 30.0}, "LlamaForCausalLM excludes model.logit_softcap=30.0"),
        ({"activation": "relu2"}, "model.activation=relu2"),
        ({"value_residual": True}, "model.value_residual=True"),
        ({"qk_norm": True, "bias": True}, "Qwen3ForCausalLM excludes model.bias=True"),
        ({"family": "gpt2", "num_kv_heads": 2}, "GPT2LMHeadModel excludes model.num_kv_heads=2"),
        ({"family": "gpt2", "head_dim": 16}, "GPT2LMHeadModel excludes model.head_dim=16"),
    ],
)
def test_each_problem_names_its_key(model: dict[str, Any], words: str) -> None:
    (problem,) = export_problems(recipe(**model))
    assert words in problem


@pytest.mark.parametrize("model", [{}, {"family": "gpt2"}, {"qk_norm": True}, {"bias": True, "mup_base_width": 256}])
def test_what_can_be_exported_has_no_problems(model: dict[str, Any]) -> None:
    assert export_problems(recipe(**model)) == []

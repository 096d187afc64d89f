"""What objectives cannot be combined with is refused when the recipe is read."""

from __future__ import annotations

from typing import Any

import pytest

from configs.schema.model import Model
from configs.schema.objective_limits import check_objective
from configs.schema.train import Train

OBJECTIVES: dict[str, Any] = {
    "sft": {"kind": "sft"},
    "reward": {"kind": "reward"},
    "dpo": {"kind": "dpo"},
    "grpo": {"kind": "grpo", "rewards": {"format": 1.0}},
    "ppo": {"kind": "ppo", "rewards": {"format": 1.0}},
}
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "train.parallel.sequence": ({}, {"parallel": {"sequence": 2}}),
    "train.parallel.tensor": ({}, {"parallel": {"tensor": 2}}),
    "model.dropout": ({"dropout": 0.1}, {}),
    "train.precision fp8": ({}, {"precision": "fp8"}),
}
REFUSED = {
    "sft": set[str](),
    "reward": set(SETTINGS) - {"train.parallel.tensor"},
    "dpo": set(SETTINGS) - {"train.parallel.tensor"},
    "grpo": set(SETTINGS),
    "ppo": set(SETTINGS),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", [None, *OBJECTIVES])
def test_combinations(kind: str | None, setting: str) -> None:
    model, train = SETTINGS[setting]
    objective = OBJECTIVES[kind] if kind else None
    sections = Model(num_layers=1, hidden_size=16, num_heads=2, **model), Train(steps=1, objective=objective, **train)
    if kind is None or setting not in REFUSED[kind]:
        return check_objective(*sections)
    with pytest.raises(ValueError, match=f"kind {kind} cannot be combined with {setting}: .*; (set it to|use bf16)"):
        check_objective(*sections)
    return None

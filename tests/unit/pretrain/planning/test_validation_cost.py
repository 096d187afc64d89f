"""What the plan says of validation and evaluation during training."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.planning.validation_cost import cost_warning, validation_cost
from tests.parts.training_run import prepare_data, tiny_recipe


def test_a_forward_pass_is_a_third_of_a_step(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, tmp_path / "none", steps=25, validation={"every": 10, "max_tokens": 3000})
    cost = validation_cost(recipe, 25, tokens_per_s=100.0)
    assert (cost["times"], cost["tokens"], cost["seconds_each"]) == (3, 3000, pytest.approx(10.0)), (
        "after 10, 20 and 25"
    )
    assert cost["evaluation_times"] is None and cost["parts"] == []
    assert cost_warning(cost, 301.0) == [] and "10% of the time of training" in cost_warning(cost, 299.0)[0]
    assert cost_warning(validation_cost(recipe, None, 100.0), 1.0) == []
    masked = tiny_recipe(tmp_path, tmp_path / "none", objective={"kind": "masked_diffusion"}, validation={"every": 10})
    times = validation_cost(masked, 25, 100.0)["seconds_each"] / validation_cost(recipe, 25, 100.0)["seconds_each"]
    assert times * 3000 / masked.train.validation.max_tokens == pytest.approx(4), "as often as it draws"


def test_prepared_data_says_how_many_tokens_there_are(tmp_path: Path) -> None:
    data = prepare_data(tmp_path / "data")
    recipe = tiny_recipe(tmp_path, data, validation={"every": 10})
    assert 1500 <= validation_cost(recipe, 20, 100.0)["tokens"] < 3000


def test_an_evaluation_takes_what_it_may_at_most(tmp_path: Path) -> None:
    policy = {"every": 10, "max_tokens": 300, "evaluation": {"parts": ["samples/*"], "every": 20, "max_seconds": 7}}
    cost = validation_cost(tiny_recipe(tmp_path, tmp_path / "none", validation=policy), 100, 100.0)
    assert (cost["evaluation_times"], cost["evaluation_seconds_at_most"]) == (5, 7.0)
    assert "45% of the time" in cost_warning(cost, 100.0)[0], "5 x 7 s, and 10 x 1 s"

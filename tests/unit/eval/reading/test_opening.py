"""When the weights of a model are divided between the ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.schema.evaluation import Evaluation
from eval.reading.opening import must_divide
from tests.parts.fake_run import fake_recipe

GIGABYTE = 2**30


@pytest.mark.parametrize(
    ("setting", "weights", "memory", "divided"),
    [
        (None, 15, 80, False),
        (None, 140, 80, True),
        (None, 41, 80, True),  # it would fit, without room for keys and values
        (None, 140, None, False),  # a CPU
        (True, 15, 80, True),
        (True, 15, None, True),
        (False, 140, 80, False),
    ],
)
def test_weights_are_divided_where_they_need_more_than_half_of_a_gpu(
    setting: bool | None, weights: int, memory: int | None, divided: bool
) -> None:
    evaluation = Evaluation(divide_weights=setting)
    recipe = fake_recipe(Path("/nowhere")).model_copy(update={"evaluation": evaluation})
    assert must_divide(recipe, weights * GIGABYTE, None if memory is None else memory * GIGABYTE) == divided

"""The mean of centred accuracies against values by hand, and what it says of tasks that are missing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from configs.schema.evaluation import Benchmarks, Core, Evaluation
from eval.aggregate import core_results
from eval.comparison.comparable import difference
from eval.comparison.scored_items import Member, ScoreItems, averaged
from eval.results import CENTRED, Result, members_of
from eval.stage_facts import applicable


def accuracy(name: str, value: float, chance: float | None, width: float | None = 0.1) -> Result:
    low, high = (None, None) if width is None else (value - width, value + width)
    return Result(f"benchmark/{name}", value, low, high, 100, "accuracy", True, "Wilson", chance=chance, set="s")


SCORES = [
    accuracy("copa/acc", 0.75, 0.5),
    accuracy("arc/acc", 0.25, 0.25),
    accuracy("arc/acc_norm", 0.4, 0.25),
    accuracy("lambada/acc", 0.2, None),
    accuracy("gsm8k/exact_match/strict-match", 0.1, None),
]


def test_values_of_dclm_by_hand() -> None:
    """(0.75 - 0.5) / 0.5 = 0.5; (0.25 - 0.25) / 0.75 = 0; 0.2 as it is. MOVER: 0.1/0.5, 0.1/0.75 and 0.1, each / 3."""
    section = Core(tasks=["copa", "arc", "lambada"], chance={"lambada": 0.0})
    ((score,), failures) = core_results(section, SCORES)
    assert not failures and score.name == CENTRED and score.value == pytest.approx(0.7 / 3)
    spread = math.hypot(0.2, 0.1 / 0.75, 0.1) / 3
    assert (score.low, score.high) == (pytest.approx(0.7 / 3 - spread), pytest.approx(0.7 / 3 + spread))
    assert score.chance == 0.0 and score.n == 300 and score.higher_is_better
    expected = [("benchmark/copa/acc", 0.5), ("benchmark/arc/acc", 0.25), ("benchmark/lambada/acc", 0.0)]
    assert members_of(score) == expected


def test_a_metric_can_be_named_with_its_filter() -> None:
    section = Core(tasks=["arc/acc_norm", "gsm8k/exact_match/strict-match"], chance={"gsm8k": 0})
    ((score,), _) = core_results(section, SCORES)
    assert score.value == pytest.approx((0.15 / 0.75 + 0.1) / 2)


def test_what_is_missing_is_named_and_there_is_no_mean_of_the_rest() -> None:
    results, (failure,) = core_results(Core(tasks=["copa", "piqa", "lambada"]), SCORES)
    assert not results and failure.name == "aggregate/core"
    assert "`piqa` has no score" in failure.reason and "evaluation.core.chance.lambada" in failure.reason


def test_a_task_counts_once_and_tells_something() -> None:
    """`copa` is `copa/acc`: it would have twice the weight of others. And nothing can be divided by 1 - 1."""
    scores = [*SCORES, accuracy("same/acc", 1.0, 1.0)]
    results, (failure,) = core_results(Core(tasks=["copa", "copa/acc", "same"]), scores)
    assert not results
    assert "`copa/acc` is on the list twice, as benchmark/copa/acc" in failure.reason
    assert "guessing is always right at `same`" in failure.reason


def test_other_lists_are_incomparable() -> None:
    one, other = (core_results(Core(tasks=tasks), SCORES)[0][0] for tasks in (["copa"], ["copa", "arc"]))
    assert difference(one, other) is not None and difference(one, one) is None


def test_without_an_interval_of_a_task_there_is_none() -> None:
    ((score,), _) = core_results(Core(tasks=["copa"]), [accuracy("copa/acc", 0.75, 0.5, None)])
    assert score.low is None and score.interval.startswith("none")


def test_a_list_names_tasks_of_the_evaluation() -> None:
    with pytest.raises(ValueError, match=r"core\.tasks are not among benchmarks\.tasks: piqa"):
        Evaluation(benchmarks=Benchmarks(tasks=["copa"]), core=Core(tasks=["copa", "piqa/acc_norm"]))


def test_a_reward_model_has_no_aggregate() -> None:
    values: dict[str, Any] = {"benchmarks": Benchmarks(tasks=["copa"]), "core": Core(tasks=["copa"])}
    assert core_results(applicable(Evaluation(**values), "reward").core, []) == ([], [])


def test_how_the_tasks_were_made_is_told_alike_however_they_were_read() -> None:
    """Stored scores come back with their settings in another order, and a recipe may list its tasks in any order."""
    settings = {"lm-eval": "0.4", "shots": 0, "prompts": "p", "task": "t", "precision": "fp32"}
    made = [replace(one, settings={**settings, "prompts": one.name}) for one in SCORES]
    kept = [replace(one, settings=dict(sorted(one.settings.items()))) for one in reversed(made)]
    ((one,), _) = core_results(Core(tasks=["copa", "arc"]), made)
    ((other,), _) = core_results(Core(tasks=["arc", "copa"]), kept)
    assert difference(one, other) is None
    assert {name: one.settings[name] for name in ("lm-eval", "shots", "precision")} == {
        "lm-eval": "0.4", "shots": 0, "precision": "fp32",
    }  # fmt: skip
    in_bf16 = [replace(one, settings={**one.settings, "precision": "bf16"}) for one in made]
    ((other,), _) = core_results(Core(tasks=["copa", "arc"]), in_bf16)
    assert difference(one, other) == "precision fp32 against bf16", "and not that the prompts differ"
    asked = [replace(made[0], settings={**made[0].settings, "prompts": "q"}), *made[1:]]
    ((other,), _) = core_results(Core(tasks=["copa", "arc"]), asked)
    assert "prompts" in (difference(one, other) or "")


def test_two_runs_are_compared_on_the_items_of_all_tasks() -> None:
    """0.5 of two items against a chance of 0.5, and 3 of 4 against 0.25: the mean of 0 and 2/3."""
    tasks = [([1.0, 0.0], 0.5), ([1.0, 1.0, 0.0, 1.0], 0.25)]
    items = averaged([Member(f"task {chance}", right_of(right), chance) for right, chance in tasks])
    assert items.ratio == pytest.approx(1 / 3) and len(items.ids) == 6
    assert items.hashes[0] != items.hashes[-1] and items.values[:, 1].sum() == pytest.approx(1.0)


def right_of(right: list[float]) -> ScoreItems:
    values = np.array([[one, 1.0] for one in right])
    return ScoreItems([str(n) for n in range(len(right))], ["h"] * len(right), values)


def test_items_of_a_group_weigh_what_their_task_does() -> None:
    """By size all items weigh the same and stay right or wrong, which McNemar's test can read."""
    one, other = right_of([1.0, 0.0]), right_of([1.0, 1.0, 0.0, 1.0])
    by_size = averaged([Member("one", one, weight=1 / 3), Member("other", other, weight=2 / 3)])
    assert by_size.ratio == pytest.approx(4 / 6) and set(by_size.values[:, 0]) == {0.0, 1.0}
    assert set(by_size.values[:, 1]) == {1.0}
    alike = averaged([Member("one", one, weight=0.5), Member("other", other, weight=0.5)])
    assert alike.ratio == pytest.approx((1 / 2 + 3 / 4) / 2)

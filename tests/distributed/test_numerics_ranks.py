"""Two ranks compare fast code with plain code: they decide alike, and training goes on as if nothing had been."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.common.numerics_record import numerics_lines
from pretrain.checkpoint.manifest import newest
from tests.distributed.groups import TRAIN_CHECKED, RankGroups
from tests.parts.training_run import metric_lines, prepare_data, write_recipe

pytestmark = pytest.mark.slow
MODEL = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "context_length": 32, "zero_init": True, "dropout": 0.1}
# name -> settings of `train`; a loss in chunks is always compared, compiled code where it is asked for
WAYS: dict[str, dict[str, Any]] = {
    "stage 3": {"zero": {"stage": 3}},
    "stage 1, bf16, compiled": {"zero": {"stage": 1}, "precision": "bf16", "compile": True},
    "stage 2, one row by two": {"zero": {"stage": 2}, "parallel": {"sequence": 2}, "document_masking": True},
}
MORE: dict[str, dict[str, Any]] = {
    **{f"stage {stage}, bf16": {"zero": {"stage": stage}, "precision": "bf16"} for stage in (0, 1, 2, 3)},
    **{f"stage {stage}, compiled": {"zero": {"stage": stage}, "compile": True} for stage in (0, 1, 2)},
    "stage 0, matrices by two": {"zero": {"stage": 0}, "parallel": {"tensor": 2}},
}


def train(directory: Path, ways: dict[str, dict[str, Any]], groups: RankGroups) -> Path:
    data, recipes = prepare_data(directory / "data"), []

    def add(name: str, plant: dict[str, Any], **train: Any) -> None:
        (directory / name).mkdir()
        settings = {"steps": 3, "global_batch_size": 8, "loss_chunk": 24, "compile": False, **train}
        file = write_recipe(directory / name / "recipe.yaml", data, **settings)
        dropout = 0.0 if "matrices" in name else 0.1  # tensor parallelism has none
        content = yaml.safe_load(file.read_text()) | {"model": MODEL | {"dropout": dropout}}
        file.write_text(yaml.safe_dump(content))
        (directory / name / "plant.json").write_text(json.dumps({"compiled": "right", "compared": True, **plant}))
        recipes.append(file)

    for name, train in ways.items():
        add(name, {}, **train)
        add(f"{name}, trusted", {"compared": False}, **train)
    wrong = {"compiled": "wrong", "rank": 1}
    add("plain", {}, zero={"stage": 1})
    add("wrong", wrong, zero={"stage": 1}, compile="auto")
    add("refused", wrong, zero={"stage": 1}, compile=True)
    groups.run(2, recipes, TRAIN_CHECKED, seconds=280)
    return directory


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, rank_groups: RankGroups) -> Path:
    return train(tmp_path_factory.mktemp("numerics"), WAYS, rank_groups)


@pytest.fixture(scope="module")
def more_runs(tmp_path_factory: pytest.TempPathFactory, rank_groups: RankGroups) -> Path:
    return train(tmp_path_factory.mktemp("more"), MORE, rank_groups)


def assert_nothing_changed(runs: Path, name: str) -> None:
    compared, trusted = runs / name / "run", runs / f"{name}, trusted" / "run"
    for key in ("train/loss", "train/grad_norm"):
        assert metric_lines(compared, key) == metric_lines(trusted, key), "to the bit"
    text = numerics_lines(compared)[0]
    assert re.search(r"he loss in chunks agrees? with plain code", text) and ("ompiled code" in text) is (
        "compiled" in name
    )
    assert 0 < metric_lines(compared, "check/gradients")[1] < (0.05 if "bf16" in name else 1e-4), text


@pytest.mark.parametrize("name", WAYS)
def test_comparing_changes_nothing(runs: Path, name: str) -> None:
    assert_nothing_changed(runs, name)


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MORE)
def test_comparing_changes_nothing_anywhere(more_runs: Path, name: str) -> None:
    assert_nothing_changed(more_runs, name)


def test_what_is_wrong_on_one_rank_is_left_behind_by_all(runs: Path) -> None:
    said = [json.loads((runs / "wrong" / f"said_{rank}.json").read_text()) for rank in (0, 1)]
    assert said == ["", ""]
    for key in ("train/loss", "train/grad_norm"):
        assert metric_lines(runs / "wrong" / "run", key) == metric_lines(runs / "plain" / "run", key)
    assert "goes on uncompiled" in numerics_lines(runs / "wrong" / "run")[0]


def test_or_refused_by_all(runs: Path) -> None:
    said = [json.loads((runs / "refused" / f"said_{rank}.json").read_text()) for rank in (0, 1)]
    assert said[0] == said[1] and said[0].startswith("WrongKernels: compiled code and the loss in chunks compute")
    assert newest(runs / "refused" / "run") is None

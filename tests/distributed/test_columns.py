"""A loss over columns with statistics, a head and a second model: the same at any micro-batch, ranks and ZeRO stage."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.groups import RankGroups
from tests.distributed.train_columns import LENGTHS, MASKED
from tests.parts.training_run import prepare_data, write_recipe

STEPS, SAVED = 4, 2
REFERENCE = (1, 0, 8)
COMBINATIONS = [(ranks, stage, micro) for stage in range(4) for ranks, micro in ((1, 1), (2, 2))]
COMBINATIONS += [REFERENCE, (2, 0, 4), (2, 3, 4)]
MOVES = [((1, 0, 8), (2, 3, 2)), ((2, 3, 4), (1, 2, 1)), ((2, 1, 2), (1, 3, 1))]  # a checkpoint goes on elsewhere
MUON = [(1, 0, 8), (2, 3, 2)]

Found = dict[str, dict[str, Any]]


class Jobs:
    def __init__(self, directory: Path, groups: RankGroups) -> None:
        self._directory, self._groups = directory, groups
        self._data = prepare_data(directory / "data")
        self._waiting: dict[int, list[Path]] = {1: [], 2: []}

    def add(self, name: str, place: tuple[int, int, int], first: int = 0, **more: Any) -> None:
        ranks, stage, micro = place
        home = self._directory / name
        home.mkdir()
        train: dict[str, Any] = {"global_batch_size": 8, "micro_batch_size": micro, "zero": {"stage": stage}}
        train |= {"optimizer": {"lr": 1e-2, **more.pop("optimizer", {})}}
        settings = {"recipe": str(write_recipe(home / "recipe.yaml", self._data, **train)), "steps": [first, STEPS]}
        file = home / "job.json"
        file.write_text(json.dumps(settings | {"load": None, "save": 0, "garbage": 0} | more))
        self._waiting[ranks].append(file)

    def checkpoint(self, name: str) -> str:
        return str(self._directory / name / "run" / "checkpoints" / f"step_{SAVED:08d}")

    def launch(self) -> Found:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda ranks: self._groups.run(ranks, self._waiting[ranks], "train_columns"), self._waiting))
        found = {
            file.parent.name: json.loads(file.with_suffix(".out").read_text())
            for files in self._waiting.values()
            for file in files
        }
        self._waiting = {1: [], 2: []}
        return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, rank_groups: RankGroups) -> Found:
    jobs = Jobs(tmp_path_factory.mktemp("columns"), rank_groups)
    saving = {start for start, _ in MOVES}
    for place in COMBINATIONS:
        jobs.add(str(place), place, save=SAVED if place in saving else 0)
    for place in MUON:
        jobs.add(f"muon {place}", place, optimizer={"name": "muon"})
    jobs.add("garbage", (1, 2, 2), garbage=5)
    first = jobs.launch()
    for start, place in MOVES:
        jobs.add(f"{start} to {place}", place, SAVED, load=jobs.checkpoint(str(start)))
    return first | jobs.launch()


def apart(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, float]:
    """Largest relative differences of what steps gave, and mean ones of weights afterwards."""
    steps = [
        abs(a - b) / max(1.0, abs(b))
        for step, values in one["steps"].items()
        for a, b in zip(values, other["steps"][step], strict=True)
    ]
    assert list(one["weights"]) == list(other["weights"])
    weights = [
        sum(abs(a - b) for a, b in zip(value, other["weights"][name], strict=True)) / len(value)
        for name, value in one["weights"].items()
    ]
    return max(steps), max(weights)


@pytest.mark.parametrize("place", COMBINATIONS, ids=str)
def test_losses_statistics_and_weights_are_the_same(found: Found, place: tuple[int, int, int]) -> None:
    """Also where a micro-batch is the row that counts nowhere, alone: it adds 0 and makes no NaN."""
    steps, weights = apart(found[str(place)], found[str(REFERENCE)])
    assert steps < 1e-5 and weights < 1e-5


@pytest.mark.parametrize("move", MOVES, ids=str)
def test_head_and_second_model_go_on_at_other_ranks_and_stages(found: Found, move: Any) -> None:
    start, place = move
    steps, weights = apart(found[f"{start} to {place}"], found[str(REFERENCE)])
    assert steps < 1e-5 and weights < 1e-5


def test_muon_updates_the_matrices_of_both_models(found: Found) -> None:
    one, other = (found[f"muon {place}"] for place in MUON)
    steps, weights = apart(other, one)
    assert steps < 1e-4 and weights < 1e-4
    assert apart(one, found[str(REFERENCE)])[1] > 1e-4, "it is another optimizer"


def test_what_a_row_without_weight_holds_changes_nothing(found: Found) -> None:
    steps, weights = apart(found["garbage"], found[str(REFERENCE)])
    assert steps < 1e-5 and weights < 1e-5


def test_reading_measuring_and_frozen_models_give_what_training_computes(found: Found) -> None:
    """Whatever the stage; tokens are counted by rows, and not by what the loss is a mean over."""
    for name, values in found.items():
        assert max(values["gaps"]) < 1e-5, name
    for name in map(str, {start for start, _ in MOVES}):
        assert found[name]["gaps"][0] == 0, "a frozen model computes to the bit what the engine does"
    assert all(values[-1] == sum(LENGTHS) for values in found[str(REFERENCE)]["steps"].values())


def test_the_tests_could_fail(found: Found) -> None:
    """Steps differ far more than combinations may, and the row that is masked would be seen."""
    losses = [values[0] for values in found[str(REFERENCE)]["steps"].values()]
    assert min(abs(a - b) for a, b in itertools.pairwise(losses)) > 1e-3
    assert LENGTHS[MASKED] > 0

"""Conversations and pairs on real ranks: every objective is the same at any micro-batch, ranks and ZeRO stage."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data_prep.tokens.shards import load_manifest
from pretrain.checkpoint.load_weights import open_weights
from pretrain.checkpoint.manifest import newest
from tests.distributed.groups import RankGroups
from tests.parts.small_units import prepare_units
from tests.parts.training_run import metric_lines, write_recipe

pytestmark = pytest.mark.slow
STEPS = 3
OBJECTIVES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "packed": ("conversations", {"kind": "sft"}, {"packing": "best_fit"}),
    "plain": ("conversations", {"kind": "sft", "train_on": "last"}, {}),
    "reward": ("pairs", {"kind": "reward", "center": 0.01, "margin": True}, {}),
    "dpo": ("pairs", {"kind": "dpo", "sft_weight": 0.1}, {}),
    "ipo": ("pairs", {"kind": "dpo", "loss": "ipo"}, {}),
    "orpo": ("pairs", {"kind": "dpo", "loss": "orpo"}, {}),
    "hinge": ("pairs", {"kind": "dpo", "loss": "hinge"}, {}),
    "robust": ("pairs", {"kind": "dpo", "loss": "robust", "label_smoothing": 0.1}, {}),
    "apo_zero": ("pairs", {"kind": "dpo", "loss": "apo_zero"}, {}),
    "simpo": ("pairs", {"kind": "dpo", "loss": "simpo"}, {}),
}
WHOLE = (1, 0, 8)  # ranks, ZeRO stage, micro-batch
PLACES = [WHOLE, (1, 1, 2), (1, 3, 4), (2, 0, 2), (2, 1, 4), (2, 2, 2), (2, 3, 2)]
FEWER = [WHOLE, (1, 2, 2), (2, 3, 2)]  # for losses that differ in their formula alone
FEWEST = [WHOLE, (2, 1, 2)]
AT = dict.fromkeys(("ipo", "orpo"), FEWER) | dict.fromkeys(("hinge", "robust", "apo_zero", "simpo"), FEWEST)
NAMES = [(name, place) for name in OBJECTIVES for place in AT.get(name, PLACES)]


def add(directory: Path, name: str, place: tuple[int, int, int], base: Path | None) -> Path:
    _, stage, micro = place
    data, objective, more = OBJECTIVES[name]
    home = directory / f"{name} {place}"
    home.mkdir()
    train: dict[str, Any] = {
        "steps": STEPS, "global_batch_size": 8, "micro_batch_size": micro, "zero": {"stage": stage},
        "objective": objective, "optimizer": {"lr": 3e-3}, **more,
    }  # fmt: skip
    if base is not None:
        train["init_from"] = str(base)
    # The reference is made once for each place, or the first would compute it for all of them.
    shards = directory / (f"{data} {place}" if name == "dpo" else data)
    if not shards.is_dir():
        prepare_units(shards, "pair")
    file = write_recipe(home / "recipe.yaml", shards, **train)
    content = yaml.safe_load(file.read_text())
    content["model"] |= {"context_length": 96, "tied_embeddings": False}
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, rank_groups: RankGroups) -> Path:
    directory = tmp_path_factory.mktemp("objectives")
    prepare_units(directory / "conversations", "conversation")
    prepare_units(directory / "pairs", "pair")
    base = add(directory, "packed", WHOLE, None)
    rank_groups.run(1, [base])
    waiting: dict[int, list[Path]] = {1: [], 2: []}
    for name, place in NAMES:
        if (name, place) != ("packed", WHOLE):
            start = None if name == "packed" else base.parent / "run"
            waiting[place[0]].append(add(directory, name, place, start))
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda ranks: rank_groups.run(ranks, waiting[ranks]), waiting))
    return directory


@pytest.mark.parametrize(("name", "place"), [named for named in NAMES if named[1] != WHOLE], ids=str)
def test_the_same_everywhere(runs: Path, name: str, place: tuple[int, int, int]) -> None:
    one, other = (runs / f"{name} {at}" / "run" for at in (WHOLE, place))
    keys = ["train/loss", "val/loss"]
    keys += [] if name in ("packed", "plain") else ["train/accuracy", "train/margin", "val/accuracy", "val/margin"]
    for key in keys:
        expected = metric_lines(one, key)
        assert expected and metric_lines(other, key) == pytest.approx(expected, rel=1e-5, abs=2e-6), key
    weights = []
    for run in (one, other):
        info = newest(run)
        assert info is not None
        _, reader = open_weights(info)
        weights.append({key: reader.whole(key, tuple(shape)).numpy() for key, shape in info.shapes.items()})
    assert ("reward_head.weight" in weights[0]) == (name == "reward")
    for key, value in weights[0].items():
        assert np.abs(value - weights[1][key]).mean() < 1e-6, key


@pytest.mark.parametrize("place", PLACES[1:], ids=str)
def test_the_stored_reference_is_the_same_everywhere(runs: Path, place: tuple[int, int, int]) -> None:
    columns = []
    for at in (WHOLE, place):
        (file,) = (load_manifest(runs / f"pairs {at}").directory).glob("reference-*.npy")
        columns.append(np.load(file))
    assert len(columns[0]) == 2 * (40 + 12)
    assert np.abs(columns[0] - columns[1]).max() < 1e-5

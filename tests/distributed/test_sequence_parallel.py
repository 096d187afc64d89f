"""Ranks that share rows train as one rank does, at every ZeRO stage; activation checkpointing changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.schema.batch_plan import solve_batch
from configs.schema.recipe import load
from pretrain.checkpoint.load_weights import load_weights
from pretrain.engine.deepspeed_config import deepspeed_config
from pretrain.parallel.rows import check_sequence
from tests.distributed.groups import RankGroups, Runs, differences
from tests.distributed.test_ranks import MUON_SETTINGS
from tests.parts.training_run import tiny_recipe

pytestmark = pytest.mark.slow
MODEL: dict[str, Any] = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "num_kv_heads": 4, "context_length": 32}
# name -> ranks, ranks that share a row, ZeRO stage, further settings of `train`
REFERENCES: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "one rank": (1, 1, 1, {}),
    "one rank, documents": (1, 1, 1, {"document_masking": True}),
    "one rank, muon": (1, 1, 1, {"optimizer": MUON_SETTINGS}),
    "one rank, bf16": (1, 1, 1, {"precision": "bf16"}),
}
CASES: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "2 share, stage 0": (2, 2, 0, {}),
    "2 share, stage 3, full": (2, 2, 3, {"activation_checkpointing": "full"}),
    "2 share, stage 1, selective": (2, 2, 1, {"activation_checkpointing": "selective"}),
    "2 share, documents": (2, 2, 2, {"document_masking": True, "micro_batch_size": 1}),
    "2 share, stage 2, muon": (2, 2, 2, {"optimizer": MUON_SETTINGS}),
    "2 share, stage 1, bf16": (2, 2, 1, {"precision": "bf16"}),
    "2 ranks, selective": (2, 1, 3, {"activation_checkpointing": "selective"}),
}
MORE: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    **{f"2 share, stage {stage}": (2, 2, stage, {}) for stage in (1, 2, 3)},
    **{
        f"2 ranks, stage {stage}, {mode}": (2, 1, stage, {"activation_checkpointing": mode})
        for stage in (0, 1, 2, 3)
        for mode in ("selective", "full")
    },
    **{f"2 share, stage {stage}, muon": (2, 2, stage, {"optimizer": MUON_SETTINGS}) for stage in (0, 1, 3)},
    **{f"2 share, stage {stage}, bf16": (2, 2, stage, {"precision": "bf16"}) for stage in (2, 3)},
    "2 share, stage 0, compiled": (2, 2, 0, {"compile": True}),
    "2 share, stage 2, compiled": (2, 2, 2, {"compile": True}),
    "2 of 4 share": (4, 2, 1, {}),
    "2 of 4 share, stage 3, documents": (4, 2, 3, {"document_masking": True}),
    "4 share": (4, 4, 3, {}),
    "4 share, stage 0": (4, 4, 0, {}),
}


def train(directory: Path, cases: dict[str, tuple[int, int, int, dict[str, Any]]], groups: RankGroups) -> Runs:
    runs = Runs(directory, groups)
    for name, (ranks, sharing, stage, settings) in {**REFERENCES, **cases}.items():
        settings = {"global_batch_size": 4, "checkpoint": {"every": 12}, "parallel": {"sequence": sharing}, **settings}
        file = runs.add(name, ranks, stage, steps=12, **settings).parent / "recipe.yaml"
        content = yaml.safe_load(file.read_text())
        file.write_text(yaml.safe_dump(content | {"model": MODEL}))
    runs.launch(seconds=280)
    return runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, rank_groups: RankGroups) -> Runs:
    return train(tmp_path_factory.mktemp("sequence"), CASES, rank_groups)


@pytest.fixture(scope="module")
def more_runs(tmp_path_factory: pytest.TempPathFactory, rank_groups: RankGroups) -> Runs:
    return train(tmp_path_factory.mktemp("more"), MORE, rank_groups)


def assert_the_same_training(runs: Runs, name: str) -> None:
    kind = next((kind for kind in ("documents", "muon", "bf16") if kind in name), None)
    reference = f"one rank, {kind}" if kind else "one rank"
    bound = 3e-3 if kind == "bf16" else 1e-5  # bf16 rounds sums over tokens otherwise where ranks have half of them
    steps = range(1, 13)
    for key in ("train/loss", "train/grad_norm", "train/code_bits_per_byte"):
        worst = max(differences(runs.values(name, key), runs.values(reference, key), steps))
        print(f"{name}: {key} differs by {worst:.1e}")
        assert worst < bound, key
    for key in ("val/loss", "val/bits_per_byte"):
        assert abs(runs.values(name, key)[12] - runs.values(reference, key)[12]) < bound, key
    assert runs.values(name, "tokens") == runs.values(reference, "tokens")
    one, other = load_weights(runs.checkpoint(name, 12)), load_weights(runs.checkpoint(reference, 12))
    for (key, value), same in zip(one.named_parameters(), other.parameters(), strict=True):
        assert (value - same).abs().mean() < bound, key


@pytest.mark.parametrize("name", CASES)
def test_the_same_training(runs: Runs, name: str) -> None:
    assert_the_same_training(runs, name)


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MORE)
def test_the_same_training_everywhere(more_runs: Runs, name: str) -> None:
    assert_the_same_training(more_runs, name)


def test_documents_matter(runs: Runs) -> None:
    assert max(differences(runs.values("one rank, documents"), runs.values("one rank"), range(1, 13))) > 1e-4


def test_what_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    shared = tiny_recipe(tmp_path, tmp_path, parallel={"sequence": 4})
    with pytest.raises(ValueError, match=r"sequence 4 needs model\.num_heads to be a multiple of it, not 2"):
        check_sequence(shared)
    with pytest.raises(ValueError, match=r"train\.parallel\.sequence 4 does not divide 6 ranks"):
        solve_batch(shared.train, 6)
    plan = solve_batch(shared.train, 8)
    assert plan.micro_batch * plan.accumulation == 4, "8 rows over 2 groups of 4 ranks"
    assert deepspeed_config(load(tmp_path / "recipe.yaml"), plan, "fp32")["train_batch_size"] == 32

"""Ranks that share matrices train as one rank does, and their checkpoints load anywhere, to the bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from configs.schema.batch_plan import solve_batch
from pretrain.checkpoint.load_weights import load_weights
from pretrain.engine.deepspeed_config import deepspeed_config
from pretrain.parallel.tensor import check_tensor
from tests.distributed.groups import RankGroups, Runs, differences
from tests.parts.training_run import tiny_recipe

pytestmark = pytest.mark.slow
SHAPE: dict[str, Any] = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "num_kv_heads": 4, "context_length": 32}
MODELS: dict[str, dict[str, Any]] = {
    "llama": SHAPE,
    "gpt2": {**SHAPE, "family": "gpt2", "num_kv_heads": None},
    "modern": {**SHAPE, "num_kv_heads": 2, "qk_norm": True, "value_residual": True, "tied_embeddings": True},
}
# name -> model, ranks, ranks that share matrices, ZeRO stage, further settings of `train`
Cases = dict[str, tuple[str, int, int, int, dict[str, Any]]]
REFERENCES: Cases = {model: (model, 1, 1, 1, {}) for model in MODELS}
CASES: Cases = {
    "llama, 2 share, stage 0": ("llama", 2, 2, 0, {}),
    "llama, 2 share, stage 1": ("llama", 2, 2, 1, {"micro_batch_size": 1}),
    "llama, 2 share, stage 2, full": ("llama", 2, 2, 2, {"activation_checkpointing": "full"}),
    "gpt2, 2 share, stage 1": ("gpt2", 2, 2, 1, {}),
    "modern, 2 share, stage 2": ("modern", 2, 2, 2, {"micro_batch_size": 1}),
}
MORE: Cases = {
    "llama, 2 share, compiled": ("llama", 2, 2, 1, {"compile": True}),
    "llama, 2 share, offload": ("llama", 2, 2, 1, {"offload": ("optimizer",)}),
    "llama, 4 share, stage 1": ("llama", 4, 4, 1, {}),
    "gpt2, 4 share, stage 0": ("gpt2", 4, 4, 0, {}),
    **{f"llama, 2 of 4 share, stage {stage}": ("llama", 4, 2, stage, {}) for stage in (0, 1, 2)},
    "modern, 2 of 4 share, stage 1": ("modern", 4, 2, 1, {"micro_batch_size": 1}),
    "gpt2, 2 of 4 share, stage 2": ("gpt2", 4, 2, 2, {}),
}
# saved by -> (ranks, ranks that share matrices, stage) that goes on from there
MOVES: dict[str, tuple[int, int, int]] = {
    "llama": (2, 2, 1),
    "gpt2": (2, 2, 2),
    "llama, 2 share, stage 0": (1, 1, 0),
    "llama, 2 share, stage 1": (2, 1, 3),
    "llama, 2 share, stage 2, full": (2, 2, 0),
    "gpt2, 2 share, stage 1": (2, 2, 1),
    "modern, 2 share, stage 2": (1, 1, 2),
}


def add(runs: Runs, name: str, case: tuple[str, int, int, int, dict[str, Any]]) -> Path:
    model, ranks, sharing, stage, settings = case
    settings = {"global_batch_size": 4, "checkpoint": {"every": 6}, "parallel": {"tensor": sharing}, **settings}
    offload = settings.pop("offload", ())
    run = runs.add(name, ranks, stage, offload, steps=12, **settings)
    file = run.parent / "recipe.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"model": MODELS[model]}))
    return run


def train(directory: Path, cases: Cases, moves: dict[str, tuple[int, int, int]], groups: RankGroups) -> Runs:
    runs = Runs(directory, groups)
    cases = {**REFERENCES, **cases}
    for name, case in cases.items():
        add(runs, name, case)
    runs.launch(seconds=280)
    for name, (ranks, sharing, stage) in moves.items():
        saved = runs.checkpoint(name, 6)
        run = add(runs, f"{name} moved", (cases[name][0], ranks, sharing, stage, {}))
        shutil.copytree(saved, run / "checkpoints" / saved.name)
    runs.launch(seconds=280)
    return runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, rank_groups: RankGroups) -> Runs:
    return train(tmp_path_factory.mktemp("tensor"), CASES, MOVES, rank_groups)


@pytest.fixture(scope="module")
def more_runs(tmp_path_factory: pytest.TempPathFactory, rank_groups: RankGroups) -> Runs:
    moves = {"llama, 2 of 4 share, stage 1": (4, 2, 1), "modern, 2 of 4 share, stage 1": (1, 1, 1), "gpt2": (4, 4, 2)}
    return train(tmp_path_factory.mktemp("more"), MORE, moves, rank_groups)


def assert_the_same_training(runs: Runs, name: str, reference: str, first: int = 1) -> None:
    for key in ("train/loss", "train/grad_norm", "train/code_bits_per_byte"):
        worst = max(differences(runs.values(name, key), runs.values(reference, key), range(first, 13)), default=0.0)
        print(f"{name}: {key} differs by {worst:.1e}")
        assert worst < 1e-5, key
    for key in ("val/loss", "val/bits_per_byte"):
        assert abs(runs.values(name, key)[12] - runs.values(reference, key)[12]) < 1e-5, key
    assert runs.values(name, "tokens")[12] == runs.values(reference, "tokens")[12]
    one, other = load_weights(runs.checkpoint(name, 12)), load_weights(runs.checkpoint(reference, 12))
    for (key, value), same in zip(one.named_parameters(), other.parameters(), strict=True):
        assert (value - same).abs().mean() < 1e-5, key


def reference_of(name: str) -> str:
    return name.partition(",")[0]


@pytest.mark.parametrize("name", CASES)
def test_the_same_training(runs: Runs, name: str) -> None:
    assert_the_same_training(runs, name, reference_of(name))


@pytest.mark.parametrize("name", MOVES)
def test_checkpoints_load_anywhere(runs: Runs, name: str) -> None:
    assert_the_same_training(runs, f"{name} moved", reference_of(name), first=7)


def test_resume_is_exact(runs: Runs) -> None:
    name = "gpt2, 2 share, stage 1"
    for key in ("train/loss", "train/grad_norm"):
        whole, moved = runs.values(name, key), runs.values(f"{name} moved", key)
        assert [whole[step] for step in range(7, 13)] == [moved[step] for step in range(7, 13)], key
    one, other = load_weights(runs.checkpoint(name, 12)), load_weights(runs.checkpoint(f"{name} moved", 12))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MORE)
def test_the_same_training_everywhere(more_runs: Runs, name: str) -> None:
    assert_the_same_training(more_runs, name, reference_of(name))


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["llama, 2 of 4 share, stage 1", "modern, 2 of 4 share, stage 1", "gpt2"])
def test_checkpoints_of_four_ranks_load_anywhere(more_runs: Runs, name: str) -> None:
    assert_the_same_training(more_runs, f"{name} moved", reference_of(name), first=7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parallel": {"tensor": 4}}, r"tensor 4 needs model\.num_heads to be a multiple of it, not 2"),
        ({"zero": {"stage": 3}}, r"tensor 2 cannot be combined with train\.zero\.stage 3"),
        ({"optimizer": {"name": "muon"}}, r"tensor 2 cannot be combined with train\.optimizer\.name muon"),
        ({"parallel": {"tensor": 2, "sequence": 2}}, r"tensor 2 cannot be combined with train\.parallel\.sequence"),
        ({"activation_checkpointing": "selective"}, r"tensor 2 .* with train\.activation_checkpointing selective"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_tensor(tiny_recipe(tmp_path, tmp_path, **{"parallel": {"tensor": 2}, **settings}))


def test_ranks_that_do_not_divide_and_settings_that_bypass_are_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, tmp_path, parallel={"tensor": 2})
    with pytest.raises(ValueError, match=r"train\.parallel\.tensor 2 does not divide 3 ranks"):
        solve_batch(recipe.train, 3)
    plain = tiny_recipe(tmp_path, tmp_path).model_copy(update={"deepspeed": {"tensor_parallel": {"autotp_size": 2}}})
    with pytest.raises(ValueError, match=r"deepspeed\.tensor_parallel cannot be set: use train\.parallel\.tensor"):
        deepspeed_config(plain, solve_batch(plain.train, 2), "fp32")

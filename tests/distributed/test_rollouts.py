"""Answers, losses and weights of reinforcement learning do not depend on micro-batches, ranks or the ZeRO stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.checkpoint.frozen_model import FrozenModel
from pretrain.checkpoint.load_weights import load_weights
from pretrain.rollout.rollout_record import read_rollout, recorded_steps
from tests.distributed.groups import RankGroups
from tests.parts.rollout_run import digits_run, prepare_digits, write_rollout_recipe
from tests.parts.training_run import metric_lines

STEPS = 4
ROLLOUT = {"prompts": 4, "samples": 4, "max_new_tokens": 3, "rows": 6}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "grpo": {"kind": "grpo", "kl": {"coefficient": 0.05}, "normalise": "grpo", "scale": "group"},
    "rloo": {"kind": "rloo", "normalise": "dr_grpo", "rollout": {**ROLLOUT, "updates": 2, "temperature": 0.7}},
    "ppo": {"kind": "ppo", "kl": {"coefficient": 0.05}, "rollout": {**ROLLOUT, "updates": 2, "passes": 2}},
    "shared": {"kind": "ppo", "critic": "shared"},
    "reinforce": {"kind": "reinforce"},
}
# Ranks, ZeRO stage, micro-batch; the first is what the others are compared with.
PLACES = [(1, 0, 8), (1, 1, 1), (1, 3, 2), (2, 0, 4), (2, 1, 2), (2, 2, 1), (2, 3, 4)]
FEW = [(1, 0, 8), (2, 0, 2), (2, 3, 1)]
AT = {"grpo": PLACES, "reinforce": FEW[:2]}
RUNS = [(name, place) for name in OBJECTIVES for place in AT.get(name, FEW)]


def named(name: str, place: tuple[int, int, int]) -> str:
    return f"{name}-{'-'.join(map(str, place))}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, rank_groups: RankGroups) -> Path:
    """A directory with all runs."""
    directory = tmp_path_factory.mktemp("rollouts")
    data = prepare_digits(directory / "data")
    (directory / "base").mkdir()
    base = digits_run(directory / "base", data)
    waiting: dict[int, list[Path]] = {1: [], 2: []}
    for name, (ranks, stage, micro) in RUNS:
        home = directory / named(name, (ranks, stage, micro))
        home.mkdir()
        objective = {"rollout": dict(ROLLOUT), **OBJECTIVES[name]}
        # Adam divides a gradient by its own size: with its usual epsilon it makes steps of rounding.
        settings = {"optimizer": {"lr": 3e-3, "weight_decay": 0.0, "eps": 1e-3}, "zero": {"stage": stage}}
        settings |= {"steps": STEPS, "micro_batch_size": micro, "init_from": str(base)}
        waiting[ranks].append(write_rollout_recipe(home / "recipe.yaml", data, objective, **settings))
    for ranks, files in waiting.items():
        rank_groups.run(ranks, files, "train_rollouts")
    return directory


@pytest.mark.parametrize(("name", "place"), RUNS, ids=[named(*one) for one in RUNS])
def test_nothing_depends_on_where_it_runs(name: str, place: tuple[int, int, int], runs: Path) -> None:
    here, there = (runs / named(name, where) / "run" for where in (place, PLACES[0]))
    steps = recorded_steps(there)
    assert steps and recorded_steps(here) == steps
    for step in steps:
        ours, theirs = read_rollout(here, step), read_rollout(there, step)
        assert [(one.slot, one.sample, one.ids, one.reward) for one in ours] == [
            (one.slot, one.sample, one.ids, one.reward) for one in theirs
        ]
        assert [one.advantage for one in ours] == pytest.approx([one.advantage for one in theirs], abs=1e-5)
    for key in ("train/loss", "train/grad_norm", "train/entropy", "train/reward", "val/reward"):
        ours, theirs = metric_lines(here, key), metric_lines(there, key)
        assert theirs and ours == pytest.approx(theirs, abs=1e-5)
    assert metric_lines(here, "train/logp_gap").values() and max(metric_lines(here, "train/logp_gap").values()) < 1e-4
    one, other = (load_weights(run / "checkpoints" / f"step_{STEPS:08d}").state_dict() for run in (here, there))
    assert max(float((one[key] - other[key]).abs().max()) for key in one) < 1e-5


def test_kl_of_the_policy_with_itself_is_nothing(runs: Path) -> None:
    for name, place in RUNS:
        if OBJECTIVES[name].get("kl"):
            kl = metric_lines(runs / named(name, place) / "run", "train/kl")
            assert abs(kl[1]) < 1e-6 and abs(kl[STEPS]) > 1e-4


def test_the_critic_starts_from_the_policy_and_is_kept_in_checkpoints(runs: Path) -> None:
    extra = FrozenModel.open(runs / "ppo-1-0-8" / "run", torch.device("cpu")).extra
    policy = dict(FrozenModel.open(runs / "base" / "run", torch.device("cpu")).model.named_parameters())
    assert extra["value.head.weight"].any()
    moved = {
        name: float((extra[f"value.body.{name}"] - value).abs().max())
        for name, value in policy.items()
        if name != "lm_head.weight"
    }
    assert 0 < max(moved.values()) < 0.1
    shared = FrozenModel.open(runs / "shared-1-0-8" / "run", torch.device("cpu")).extra
    assert list(shared) == ["value.head.weight"]

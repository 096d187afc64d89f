"""Masked diffusion trains alike at every ZeRO stage, on any ranks, in any micro-batches, and resumes to the bit."""

from __future__ import annotations

from typing import Any

import pytest

from pretrain.checkpoint.load_weights import load_weights
from tests.distributed.groups import RankGroups, Runs, differences

pytestmark = pytest.mark.slow
# name -> ranks, ZeRO stage, further settings of `train`
CASES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "one rank": (1, 0, {}),
    "one rank, stage 3": (1, 3, {}),
    "one rank, micro-batches of 1": (1, 1, {"micro_batch_size": 1}),
    **{f"2 ranks, stage {stage}": (2, stage, {"micro_batch_size": 1}) for stage in range(4)},
    "2 share rows": (2, 1, {"parallel": {"sequence": 2}}),
    "2 share matrices": (2, 1, {"parallel": {"tensor": 2}}),
}
BROKEN, HALF = "2 ranks, broken off", 10
COMMON: dict[str, Any] = {
    "objective": {"kind": "masked_diffusion"},
    "global_batch_size": 4,
    "schedule": {"kind": "constant", "warmup_steps": 2},
    "checkpoint": {"every": 20},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, rank_groups: RankGroups) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("masked"), rank_groups, masked=True)
    for name, (ranks, stage, settings) in CASES.items():
        runs.add(name, ranks, stage, **COMMON, **settings)
    for steps in (HALF, 20):
        runs.add(BROKEN, 2, 2, **COMMON, micro_batch_size=1, steps=steps)
    runs.launch()
    return runs


@pytest.mark.parametrize("name", [name for name in CASES if name != "one rank"])
def test_the_same_training(runs: Runs, name: str) -> None:
    for key in ("train/loss", "train/grad_norm"):
        assert max(differences(runs.values(name, key), runs.values("one rank", key))) < 1e-5, key
    for key in ("val/loss", "val/bits_per_byte"):
        assert abs(runs.values(name, key)[20] - runs.values("one rank", key)[20]) < 1e-5, key
    assert runs.values(name, "tokens") == runs.values("one rank", "tokens")
    one, other = load_weights(runs.checkpoint(name, 20)), load_weights(runs.checkpoint("one rank", 20))
    for (key, value), same in zip(one.named_parameters(), other.parameters(), strict=True):
        assert (value - same).abs().mean() < 1e-5, key


def test_it_learns_counts_all_targets_and_is_no_code(runs: Runs) -> None:
    losses = runs.values("one rank")
    assert losses[20] < losses[1] - 0.5
    assert runs.values("one rank", "tokens")[20] == 20 * 4 * 32
    assert not runs.values("one rank", "train/code_length_bits")


def test_a_run_that_was_broken_off_goes_on_to_the_bit(runs: Runs) -> None:
    assert runs.values(BROKEN) == runs.values("2 ranks, stage 2")
    assert runs.values(BROKEN, "val/loss")[20] == runs.values("2 ranks, stage 2", "val/loss")[20]

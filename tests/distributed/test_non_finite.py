"""Two real processes over gloo: a loss, a gradient or a weight goes wrong on one of them, at every ZeRO stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.groups import TRAIN_FAULTY, RankGroups, Runs

pytestmark = pytest.mark.slow
STAGES = (0, 1, 2, 3)
# not finite: name -> (kind, stage, precision)
FAULTS = {
    f"{kind} {stage} {precision}": (kind, stage, precision)
    for kind in ("loss", "gradient")
    for stage, precision in (*((stage, "fp32") for stage in STAGES), (1, "bf16"))
}
# name -> (action, stage, precision); the name begins with the action
ACTIONS = {
    f"{action} {stage} {precision}": (action, stage, precision)
    for stage in STAGES
    for action in ("skip", "rewind")
    for precision in ("fp32", "bf16")
    if (precision == "fp32" and (action == "skip" or stage % 2 == 0))
    or (precision == "bf16" and (stage < 3 if action == "skip" else stage == 2))
}
STEP, STEPS = 8, 12
COMMON = {"steps": STEPS, "global_batch_size": 4, "micro_batch_size": 1, "checkpoint": {"every": 5}}
WATCH = {"compare_every": 1, "heartbeat_seconds": 0.5}
SPIKES = {"window": 8, "zscore": 50.0}
FLIP_STAGES = (0, 2)  # at stage 3 each weight lies on one rank


class FaultyRuns(Runs):
    def add_faulty(self, name: str, fault: dict[str, Any], stage: int, **train: Any) -> Path:
        run = self.add(name, 2, stage, **COMMON, watch=WATCH, **train)
        (run.parent / "fault.json").write_text(json.dumps(fault))
        return run

    def said(self, name: str) -> list[dict[str, Any]]:
        return [json.loads((self.directory / name / f"said_{rank}.json").read_text()) for rank in (0, 1)]

    def losses(self, name: str) -> dict[int, float]:
        return self.values(name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, rank_groups: RankGroups) -> FaultyRuns:
    """First all faults, then clean runs that are told to skip what the faulty ones skipped."""
    runs = FaultyRuns(tmp_path_factory.mktemp("faulty"), rank_groups)
    for name, (kind, stage, precision) in FAULTS.items():
        runs.add_faulty(name, {"kind": kind, "rank": 1, "step": STEP}, stage, precision=precision)
    for name, (action, stage, precision) in ACTIONS.items():
        faults = {"action": action, **SPIKES}
        fault = {"kind": "spike", "rank": 1, "step": STEP}
        runs.add_faulty(name, fault, stage, faults=faults, precision=precision)
    for stage in FLIP_STAGES:
        runs.add_faulty(f"flip {stage}", {"kind": "flip", "rank": 1, "step": 3}, stage)
    fault = {"kind": "gradient", "rank": 0, "step": STEP}
    runs.add_faulty("skip gradient", fault, 2, faults={"action": "skip", **SPIKES})
    runs.launch(TRAIN_FAULTY)
    for name, (_, stage, precision) in {**ACTIONS, "skip gradient": ("skip", 2, "fp32")}.items():
        run = runs.add_faulty(f"{name} again", {}, stage, faults=SPIKES, precision=precision)
        run.mkdir()
        shutil.copy(runs.directory / name / "run" / "skipped.json", run)
    runs.launch(TRAIN_FAULTY)
    return runs


@pytest.mark.parametrize("name", FAULTS)
def test_a_non_finite_value_on_one_rank_stops_all_before_the_update(runs: FaultyRuns, name: str) -> None:
    kind, _, _ = FAULTS[name]
    for outcome in runs.said(name):
        assert outcome["said"].startswith("NonFiniteLoss: the " + {"loss": "loss", "gradient": "gradient norm"}[kind])
        assert f"of step {STEP} is" in outcome["said"] and "(not finite on rank 1)" in outcome["said"]
        assert "documents: tiny " in outcome["said"]
        assert outcome["unchanged"], "weights and moments are those before the step"
    assert sorted(runs.losses(name)) == list(range(1, STEP))
    record = json.loads((runs.directory / name / "run" / "faults" / f"step_{STEP:08d}.json").read_text())
    assert record["ranks"] == [1] and {span["row"] for span in record["documents"]} == {2, 3}


@pytest.mark.parametrize("name", ACTIONS)
def test_a_run_that_skips_the_same_is_the_same_run(runs: FaultyRuns, name: str) -> None:
    """Letting go of a step's gradients leaves nothing behind; after a rewind neither do the steps before."""
    action, _, _ = ACTIONS[name]
    assert [outcome["said"] for outcome in runs.said(name)] == ["", ""]
    first = {"skip": STEP, "rewind": 6}[action]
    made = [step for step in range(1, STEPS + 1) if not first <= step <= STEP]
    assert sorted(runs.losses(name)) == made
    assert runs.losses(name) == runs.losses(f"{name} again")
    checkpoint = json.loads((runs.directory / name / "run/checkpoints/step_00000012/manifest.json").read_text())
    entries = checkpoint["state"]["faults"]["skipped"]
    assert [(entry["first"], entry["last"], entry["action"]) for entry in entries] == [(first, STEP, action)]
    assert checkpoint["state"]["updates"] == len(made)


def test_a_non_finite_gradient_is_skipped_where_the_recipe_says_so(runs: FaultyRuns) -> None:
    assert sorted(runs.losses("skip gradient")) == [step for step in range(1, STEPS + 1) if step != STEP]
    assert runs.losses("skip gradient") == runs.losses("skip gradient again")


@pytest.mark.parametrize("stage", FLIP_STAGES)
def test_one_flipped_bit_is_found_and_of_two_ranks_both_are_named(runs: FaultyRuns, stage: int) -> None:
    for outcome in runs.said(f"flip {stage}"):
        assert outcome["said"].startswith("SilentCorruption: after step 3 "), outcome["said"]
        assert "rank 0 (" in outcome["said"] and "rank 1 (" in outcome["said"] and "first in blocks" in outcome["said"]
    assert not list((runs.directory / f"flip {stage}" / "run" / "checkpoints").glob("step_*"))

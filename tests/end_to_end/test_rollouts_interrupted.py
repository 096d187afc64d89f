"""Reinforcement learning goes on after a fault to the bit: the same answers, losses and weights."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint.load_weights import load_weights
from pretrain.rollout.rollout_record import digest
from tests.parts.rank_processes import last_step, wait_until
from tests.parts.rollout_run import digits_run, prepare_digits, write_rollout_recipe
from tests.parts.training_run import metric_lines, start_training, train_to_end

STEPS = 16


@pytest.mark.slow
def test_killed_and_resumed_it_is_the_same_run(tmp_path: Path) -> None:
    """Killed with -9 between two checkpoints, in the middle of a rollout's steps or of drawing the next one."""
    data = prepare_digits(tmp_path / "data")
    (tmp_path / "base").mkdir()
    base = digits_run(tmp_path / "base", data)
    rollout = {"prompts": 4, "samples": 4, "max_new_tokens": 3, "updates": 2}
    files = []
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
        objective = {"kind": "ppo", "kl": {"coefficient": 0.05}, "rollout": dict(rollout)}
        settings = {"steps": STEPS, "init_from": str(base), "checkpoint": {"every": 4}}
        files.append(write_rollout_recipe(tmp_path / name / "recipe.yaml", data, objective, **settings))
    trust = [("--trust", str(file.parent)) for file in files]
    undisturbed = start_training(files[0], *trust[0])
    killed = start_training(files[1], *trust[1])
    try:
        run = tmp_path / "killed" / "run"
        wait_until(lambda: (run / "metrics.jsonl").exists() and last_step(run) >= 6)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        assert 6 <= last_step(run) < STEPS
        again = train_to_end(files[1], *trust[1])
        assert again.returncode == 0, again.stderr[-3000:]
        _, said = undisturbed.communicate(timeout=280)
        assert undisturbed.returncode == 0, said[-3000:]
    finally:
        for process in (undisturbed, killed):
            process.kill()
            process.communicate()
    runs = [tmp_path / name / "run" for name in ("undisturbed", "killed")]
    assert digest(runs[0]) == digest(runs[1])
    for key in ("train/loss", "train/grad_norm", "train/reward", "train/kl"):
        assert metric_lines(runs[0], key) == metric_lines(runs[1], key)
    one, other = (load_weights(run / "checkpoints" / f"step_{STEPS:08d}").state_dict() for run in runs)
    assert all(torch.equal(value, other[name]) for name, value in one.items())

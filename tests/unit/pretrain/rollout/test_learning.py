"""GRPO teaches a policy which digit to say, through the whole session: rollouts, rewards, record, validation."""

from __future__ import annotations

from pathlib import Path

import pytest

import pretrain.session as session
from configs.safety.trust import trusting
from pretrain.metrics.metrics_file import read_metrics
from pretrain.rollout.rollout_record import read_rollout, recorded_steps
from tests.parts.rollout_run import digits_run, prepare_digits, rollout_recipe


@pytest.mark.slow
def test_repeat_the_digit(tmp_path: Path) -> None:
    """From one right answer in ten to more than half; over 110 steps it is 8 in 10."""
    data = prepare_digits(tmp_path / "data")
    (tmp_path / "base").mkdir()
    base = digits_run(tmp_path / "base", data)
    rollout = {"prompts": 10, "samples": 16, "max_new_tokens": 2}
    optimizer = {"lr": 4e-3, "weight_decay": 0.0}
    recipe = rollout_recipe(
        tmp_path, data, {"rollout": rollout, "scale": "group"}, steps=60, optimizer=optimizer, init_from=str(base)
    )
    with trusting([tmp_path]):
        session.run(recipe)
    lines = list(read_metrics(tmp_path / "run"))
    rewards = [line["train/reward"] for line in lines if "train/reward" in line]
    assert len(rewards) == 60 and rewards[0] < 0.2 and sum(rewards[-4:]) / 4 > 0.5
    (held_out,) = [line["val/reward"] for line in lines if "val/reward" in line]
    assert held_out > 0.5
    assert max(line["train/logp_gap"] for line in lines if "train/logp_gap" in line) < 1e-4
    assert recorded_steps(tmp_path / "run") == list(range(1, 61))
    first = read_rollout(tmp_path / "run", 1)
    assert len(first) == 160 and sum(answer.reward for answer in first) / 160 == pytest.approx(rewards[0])
    # What was drawn is what was trained on: the ids end with the end that was drawn, one log-probability each.
    assert all(answer.ids and len(answer.ids) == len(answer.log_probs) for answer in first)

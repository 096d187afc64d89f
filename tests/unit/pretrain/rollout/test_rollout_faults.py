"""What goes wrong in a rollout ends training with one clear message, and what was drawn and trained before stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pretrain.session as session
from configs.safety.trust import trusting
from configs.schema.recipe import RecipeError
from pretrain.checkpoint.manifest import newest
from pretrain.metrics.metrics_file import read_metrics
from pretrain.objectives.objective import NothingToLearn
from pretrain.rollout.rollout_record import digest, read_rollout, recorded_steps
from tests.parts.rollout_run import digits_run, prepare_digits, rollout_recipe

ROLLOUT = {"prompts": 2, "samples": 2, "max_new_tokens": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a policy; beside it the data."""
    directory = tmp_path_factory.mktemp("base")
    return digits_run(directory, prepare_digits(directory.parent / "digits"))


Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path, base: Path) -> Run:
    def train(code: str, objective: dict[str, Any] | None = None, **more: Any) -> Path:
        chosen = {"rollout": dict(ROLLOUT), **(objective or {})}
        data = base.parent.parent / "digits"
        recipe = rollout_recipe(tmp_path, data, chosen, init_from=str(base), **more)
        (tmp_path / "rewards.py").write_text(code, encoding="utf-8")
        with trusting([tmp_path]):
            session.run(recipe)
        return recipe.run_directory

    return train


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", r"rewards.py:repeats raised ZeroDivisionError"),
        ("return float('nan')", r"rewards.py:repeats gave nan; a reward is a finite number"),
        ("import time\n        time.sleep(60)", r"rewards.py:repeats took more than 0.2 s"),
    ],
    ids=["raises", "nan", "never ends"],
)
def test_a_reward_that_misbehaves(run: Run, tmp_path: Path, body: str, message: str) -> None:
    """Two steps are fine, the third is not: both are kept, and so is what they drew."""
    code = f"calls = []\ndef repeats(text, reference):\n    calls.append(1)\n    if len(calls) > 8:\n        {body}\n"
    code += "    return float(text == reference) + len(calls) % 2\n"
    file = tmp_path / "rewards.py"
    rewards = {"custom": [{"code": f"{file}:repeats", "seconds": 0.2}]}
    with pytest.raises(ValueError, match=message):
        run(code, {"rewards": rewards}, checkpoint={"every": 1})
    info = newest(tmp_path / "run")
    assert info is not None and info.step == 2 and recorded_steps(tmp_path / "run") == [1, 2]


def test_groups_without_variance_stop_the_run_after_twenty_steps(run: Run, tmp_path: Path) -> None:
    with pytest.raises(NothingToLearn, match=r"for 20 steps all answers .* \(reward 0.5 on average; 0% of the answers"):
        run("def repeats(text, reference):\n    return 0.5\n", steps=40)
    lines = [line for line in read_metrics(tmp_path / "run") if "train/reward" in line]
    assert [line["train/informative"] for line in lines] == [0.0] * 19
    assert all(line["train/loss"] == 0 and line["train/grad_norm"] == 0 for line in lines)
    assert all(answer.advantage == 0 for answer in read_rollout(tmp_path / "run", 1))


def test_a_rollout_of_cut_answers_has_no_loss(run: Run) -> None:
    """`truncated: mask` leaves nothing to learn from, and nothing to divide by."""
    objective = {"rollout": {**ROLLOUT, "max_new_tokens": 1, "truncated": "mask"}}
    directory = run("def repeats(text, reference):\n    return float(ord(text[0]) % 3)\n", objective, steps=2)
    lines = [line for line in read_metrics(directory) if "train/reward" in line]
    assert [line["train/loss"] for line in lines] == [0, 0] and {line["train/stop_rate"] for line in lines} == {0}
    assert all(answer.finish == "length" for answer in read_rollout(directory, 1))


def test_a_divergence_that_is_only_measured_changes_nothing(run: Run) -> None:
    code = "def repeats(text, reference):\n    return float(ord(text[0]) % 3)\n"
    found = []
    for kl in ({}, {"measure": True}):
        directory = run(code, {"kl": kl}, steps=3)
        lines = [line for line in read_metrics(directory) if "train/reward" in line]
        found.append((digest(directory), [line["train/loss"] for line in lines]))
        shutil.rmtree(directory)
        assert ("train/kl" in lines[0]) is bool(kl)
    assert found[0] == found[1]
    assert abs(lines[0]["train/kl"]) < 1e-6 and abs(lines[2]["train/kl"]) > 1e-5


def test_a_trainer_that_sees_other_probabilities_stops(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pretrain.objectives.policy import PolicyLoss

    known = PolicyLoss.target_log_probs

    def shifted(self: PolicyLoss, *given: Any) -> Any:
        log_probs, entropy = known(self, *given)
        return log_probs + 0.01, entropy

    monkeypatch.setattr(PolicyLoss, "target_log_probs", shifted)
    with pytest.raises(ValueError, match=r"step 1: log-probabilities of sampler and trainer differ by 0.01 on average"):
        run("def repeats(text, reference):\n    return float(ord(text[0]) % 3)\n")


@pytest.mark.parametrize(
    ("objective", "more", "message"),
    [
        ({"kl": {"coefficient": 0.1, "estimator": "k3"}}, {}, "where: reward takes estimator k1, not k3"),
        ({"rollout": {**ROLLOUT, "samples": 1}}, {}, "rollout.samples must be 2 or more"),
        ({"rollout": {**ROLLOUT, "updates": 3}}, {}, "4 answers .* cannot be shared by the 3 steps of a pass"),
        ({"rollout": {**ROLLOUT, "updates": 3, "passes": 2}}, {}, "updates 3 is no multiple of passes 2"),
        ({"rollout": {**ROLLOUT, "updates": 2}}, {"checkpoint": {"every": 3}}, "every 3 a multiple of 2"),
        ({"rollout": {**ROLLOUT, "top_k": 50}}, {}, "top_k"),  # draws from another distribution than the loss knows
        ({"kind": "reinforce", "scale": "group"}, {}, "divided by a deviation of 0; use scale batch or none"),
        ({}, {"global_batch_size": 8}, "gives 4 sequences per step, but train.global_batch_size is 8; make it 4"),
        ({}, {"parallel": {"tensor": 2}}, "train.parallel.tensor"),
    ],
)
def test_settings_that_do_not_fit(
    tmp_path: Path, objective: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        rollout_recipe(tmp_path, tmp_path, {"rollout": dict(ROLLOUT), **objective}, **more)

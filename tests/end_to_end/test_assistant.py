"""`replica run` through all stages of a recipe; again, after a loss, and when a parent was trained further."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.common.files import read_json
from pretrain.checkpoint.manifest import newest
from pretrain.checkpoint.parents import PARENTS

Replica = Callable[..., subprocess.CompletedProcess[str]]

STAGES = """\
stages:
  - name: sft
    objective: {kind: sft}
    data: {sources: [{name: sums, path: sums.jsonl, shape: gsm8k, licence: CC0-1.0}], validation_fraction: 0.2}
    train: {steps: 6}
  - name: reward
    objective: {kind: reward}
    data: {sources: [{name: pairs, path: pairs.jsonl, shape: pairs, licence: CC0-1.0}]}
    train: {steps: 2}
  - name: dpo
    from: sft
    objective: {kind: dpo}
    data: {like: reward}
    train: {steps: 2}
  - name: grpo
    from: dpo
    objective:
      kind: grpo
      rewards: {exact_answer: 1, length: {weight: 0.5, tokens: 8}, model: {stage: reward, weight: 0.1}}
      rollout: {prompts: 4, samples: 2, max_new_tokens: 8, truncated: keep}
    data: {sources: [{name: sums, path: sums.jsonl, shape: gsm8k, licence: CC0-1.0}]}
    train: {steps: 4, checkpoint: {every: 2}}
"""


@pytest.fixture
def recipe(tiny_recipe: Path) -> Path:
    """The tiny recipe with stages, beside its sums."""
    sums = [(a, b) for a in range(8) for b in range(8)]
    rows = [{"id": f"{a}+{b}", "question": f"{a}+{b}?", "answer": f"#### {a + b}"} for a, b in sums]
    pairs = [
        {"id": f"{a}+{b}", "prompt": f"{a}+{b}?", "chosen": f"#### {a + b}", "rejected": f"#### {a + b + 1}"}
        for a, b in sums
    ]
    for name, lines in (("sums", rows), ("pairs", pairs)):
        (tiny_recipe.parent / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = tiny_recipe.read_text().replace("{kind: byte}", "{kind: byte, special_tokens: chat}") + STAGES
    text = text.replace("evaluation:\n", "evaluation:\n  chat: [{name: sums, path: sums.jsonl, max_items: 8}]\n")
    text = text.replace("chat: [", "preference: [{name: pairs, path: pairs.jsonl, shape: pairs}]\n  chat: [")
    text = text.replace(
        '["perplexity', '["reward:preference/pairs/accuracy >= 0", "sft:chat/sums/stop_rate >= 0", "perplexity'
    )
    tiny_recipe.write_text(text)
    return tiny_recipe


@pytest.mark.slow
@pytest.mark.usefixtures("prepares_here")
def test_from_text_to_a_policy(recipe: Path, tmp_path: Path, replica: Replica) -> None:
    run = tmp_path / "run"
    done = replica("run", recipe, "--out", run)
    assert "gate passed: sft:chat/sums/stop_rate >= 0" in done.stdout and "tiny.grpo" in done.stdout
    names = ("sft", "reward", "dpo", "grpo")
    results = {
        name: {one["name"] for one in read_json(run / "stages" / name / "results.json")["results"]} for name in names
    }
    assert all("chat/sums/accuracy" in results[name] for name in ("sft", "dpo", "grpo"))
    assert "preference/pairs/longer" in results["reward"] and "chat/sums/accuracy" not in results["reward"]

    again = replica("run", recipe, "--out", run)
    assert again.stderr.count("up to date") == 4 * 5 and again.stdout == done.stdout

    rewards = replica("trace", run, "--stage", "grpo", "--step", "3", "--sample", "5").stdout
    assert "exact_answer" in rewards and "sums.jsonl" in rewards and "reward model of stage reward" in rewards
    check_resume(run, recipe, replica)
    check_parents(run, recipe, replica)


def check_resume(run: Path, recipe: Path, replica: Replica) -> None:
    """The last rollouts are lost: the same command draws the same answers again."""
    grpo = run / "stages" / "grpo"
    last = newest(grpo)
    rollouts = {file.name: file.read_bytes() for file in (grpo / "rollouts").iterdir()}
    assert last is not None and len(rollouts) == 4
    shutil.rmtree(last.directory)
    for name in sorted(rollouts)[2:]:
        (grpo / "rollouts" / name).unlink()
    replica("train", recipe, "--out", run, "--stage", "grpo")
    continued = newest(grpo)
    assert continued is not None and continued.fingerprint == last.fingerprint
    assert {file.name: file.read_bytes() for file in (grpo / "rollouts").iterdir()} == rollouts
    assert {entry["role"]: entry["stage"] for entry in continued.state[PARENTS]} == {
        "policy": "dpo",
        "reward": "reward",
    }


def check_parents(run: Path, recipe: Path, replica: Replica) -> None:
    """The base goes on: every stage is stale, and says what to do."""
    longer = ("--out", run, "train.steps=14")
    replica("train", recipe, *longer)
    refused = replica("train", recipe, "--stage", "grpo", *longer, check=False)
    assert refused.returncode == 2 and "tiny.grpo needs the weights of `dpo`" in refused.stderr
    refused = replica("run", recipe, *longer, check=False)
    assert refused.returncode == 2 and "the checkpoint of `base` (policy) = step 12" in refused.stderr
    assert f"move {run}/stages/sft away, and the same command trains the stage again" in refused.stderr

"""`replica trace` of stages: the units of a step, answers of reinforcement learning and what they were rewarded for."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.schema.chat import Unit
from configs.schema.recipe import load, save
from data_prep.tokens.shards import load_manifest
from launch.cli import main as replica
from pretrain.batches.packing import packing_lines
from pretrain.rollout.rollout_record import RecordedAnswer, write_rollout
from tests.parts.small_units import prepare_units
from tests.parts.training_run import write_recipe

TEXT = """
out: OUT
data: {sources: [{name: a, path: a.txt}]}
model: {num_layers: 2, hidden_size: 32, num_heads: 2, context_length: 32}
train: {steps: 5}
stages:
  - name: sft
    objective: {kind: sft}
    data: {sources: [{name: sums, path: sums-*.jsonl, shape: gsm8k}]}
    train: {steps: 5}
  - name: reward
    objective: {kind: reward}
    data: {sources: [{name: pairs, path: pairs.jsonl, shape: pairs}]}
    train: {steps: 5}
  - name: grpo
    from: sft
    objective:
      kind: grpo
      rewards: {exact_answer: 2, length: {weight: 0.5, tokens: 8}, model: {stage: reward, weight: 0.25},
                custom: [{code: own.py:polite}]}
      rollout: {prompts: 3, samples: 2, updates: 3}
    data: {sources: [{name: sums, path: sums-*.jsonl, shape: gsm8k}]}
    train: {steps: 30, checkpoint: {every: 30}}
"""


def answer(sample: int, text: str, right: float) -> RecordedAnswer:
    return RecordedAnswer(
        source="sums", document="sums-b.jsonl:17", slot=9, sample=sample, reference="7", prompt=[0, 2], ids=[5, 6],
        prompt_text="What is 3 + 4?", text=text, log_probs=[-0.5, -0.25], reward=2 * right + 0.5, advantage=right - 0.5,
        finish="stop", rewards={"exact_answer": right, "length": 0.75, "model": 0.4, "polite": 1.0},
        matched={"exact_answer": "7" if right else None, "polite": "\\x1b[31m"}, flags=["exact_answer:several_markers"],
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    file = tmp_path / "chain.yaml"
    file.write_text(TEXT.replace("OUT", str(tmp_path / "run")))
    for name in ("a", "b"):
        (tmp_path / f"sums-{name}.jsonl").write_text("{}\n")
    recipe = load(file)
    for name in ("base", "grpo"):
        stage = recipe.stage(name)
        save(stage, stage.run_directory)
    answers = [answer(0, "It is 7 or\n#### 7", 1.0), answer(1, "#### 8 \x1b[31m", 0.0)]
    write_rollout(recipe.stage("grpo").run_directory, 10, answers, ["exact_answer", "length", "model", "polite"])
    return recipe.run_directory


def test_the_answers_of_a_step(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replica(["trace", str(run), "--stage", "grpo", "--step", "10"]) == 0
    said = capsys.readouterr()
    assert "the rollout of step 10; the steps 10 to 12 train on a part of it each" in said.err
    lines = said.out.splitlines()
    assert lines[0].split() == ["sample", "prompt", "answer", "reference", "reward", "advantage", "end"]
    assert " ".join(lines[1].split()) == "0 What is 3 + 4? It is 7 or #### 7 7 2.5 +0.5 stop"
    assert "\x1b" not in lines[2] and "#### 8" in lines[2]


def test_from_a_reward_to_its_function_its_span_and_its_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replica(["trace", f"{run}:grpo", "--step", "12", "--sample", "0"]) == 0  # a rollout may serve several steps
    said = capsys.readouterr().out
    for words in (
        "answer          It is 7 or\n                #### 7\n",
        "reward          2.5; advantage +0.5",
        "  exact_answer  1 x 2 = 2; for `7`, characters 16 to 17 of the answer; pretrain/rewards/answers.py: the last",
        "  length        0.75 x 0.5 = 0.375; for no stretch of the text; pretrain/rewards/length.py",
        f"  model         0.4 x 0.25 = 0.1; for no stretch of the text; the reward model of stage reward, {run}/sta",
        f"1 x 1 = 1; for `\\x1b[31m`; {tmp_path}/own.py:polite",
        "remarks         exact_answer:several_markers",
        "document        sums-b.jsonl:17, of source sums",
    ):
        assert words in said, (words, said)
    assert f"{tmp_path}/sums-b.jsonl\n" in said and "sums-a.jsonl" not in said


@pytest.mark.parametrize(("kind", "unit"), [("sft", "conversation"), ("reward", "pair")])
def test_the_units_of_a_step(kind: str, unit: Unit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = prepare_units(tmp_path / "data", unit)
    train = {"objective": {"kind": kind}, "packing": "best_fit" if kind == "sft" else "stream"}
    recipe = load(write_recipe(tmp_path / "recipe.yaml", data, steps=4, **train), ["model.context_length=64"])
    save(recipe, recipe.run_directory)
    if kind == "sft":
        packing_lines(load_manifest(data), recipe.model.context_length)
    assert replica(["trace", str(recipe.run_directory), "--step", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0] for line in lines[1:]}
    assert rows == {str(row) for row in range(8)} and all(" unit " in line for line in lines[1:])
    if kind == "reward":
        assert lines[0].split()[:3] == ["row", "answer", "document"]
        sides = [(line.split()[1], " ".join(line.split()[2:4])) for line in lines[1:]]
        assert [side for side, _ in sides] == ["chosen", "rejected"] * 4
        assert all(sides[row][1] == sides[row + 1][1] for row in range(0, 8, 2)), "both are of one pair"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--step", "9", "--stage", "grpo"], "has no rollout of step 9; its first is that of step 10"),
        (["--step", "13", "--stage", "grpo"], "has no rollout of step 13; its last is that of step 10"),
        (["--step", "10", "--stage", "grpo", "--sample", "2"], "has the answers 0 to 1"),
        (["--step", "10", "--stage", "dpo"], "has no stage `dpo` that has begun; it has base, grpo"),
        (["--step", "1", "--sample", "0"], "--sample shows an answer of reinforcement learning, which chain does not"),
    ],
)
def test_what_cannot_be_traced(run: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert replica(["trace", str(run), *arguments]) == 2
    assert words in capsys.readouterr().err

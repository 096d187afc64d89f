"""`replica run` with stages: the order of the work, what is skipped, what happens when a stage fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.schema.recipe import Recipe, RecipeError, load
from eval.results import ScoresFailed
from launch import run_stages
from launch.cli import main as replica
from launch.run_stages import run_all

TEXT = """
out: OUT
data: {sources: [{name: a, path: a.txt}]}
model: {num_layers: 2, hidden_size: 32, num_heads: 2, context_length: 32}
train: {steps: 5, ranks: 1}
stages:
  - name: sft
    objective: {kind: sft}
    data: {sources: [{name: chats, path: chats.jsonl, shape: openai}]}
    train: {steps: 4}
  - name: grpo
    objective: {kind: grpo, rewards: {exact_answer: 1}, rollout: {prompts: 2, samples: 2}}
    data: {sources: [{name: sums, path: sums.jsonl, shape: gsm8k}]}
    train: {steps: 3}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "chain.yaml"
    path.write_text(TEXT.replace("OUT", str(tmp_path / "run")))
    return path


class Works:
    """Stands for the work of all runs: notes what is done, and knows then that it is current."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.current: set[str] = set()
        self.fails: dict[str, BaseException] = {}
        kinds = {"data": "_data_is_current", "train": "_training_is_done", "eval": "_results_are_current"}
        for kind, check in {**kinds, "report": "page_is_current"}.items():
            monkeypatch.setattr(run_stages, f"{kind}_stage", lambda run, kind=kind: self._do(kind, run))
            monkeypatch.setattr(run_stages, check, lambda run, kind=kind: self._name(kind, run) in self.current)
        monkeypatch.setattr(run_stages, "print_headlines", lambda run, title: self.done.append(f"scores {title}"))
        monkeypatch.setattr(run_stages, "print_verdict", lambda run: 0)

    def _name(self, kind: str, run: Recipe | Path) -> str:
        return f"{kind} {(run.run_directory if isinstance(run, Recipe) else run).name}"

    def _do(self, kind: str, run: Recipe | Path) -> None:
        name = self._name(kind, run)
        if error := self.fails.get(name):
            raise error
        self.done.append(name)
        self.current.add(name)


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> Works:
    return Works(monkeypatch)


ALL = [
    *("data run", "train run", "eval run"),
    *("data sft", "train sft", "eval sft", "report sft"),
    *("data grpo", "train grpo", "eval grpo", "report grpo"),
    "report run",  # it shows the stages too
]
SCORES = ["scores chain", "scores chain.sft", "scores chain.grpo"]


def test_the_base_then_each_stage_then_the_report_of_all(
    file: Path, works: Works, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load(file)
    assert run_all(recipe) == 0 and works.done == [*ALL, *SCORES]
    for name in ("sft", "grpo"):
        stage = load(tmp_path / "run" / "stages" / name / "recipe.yaml")
        assert stage == recipe.stage(name)
    said = capsys.readouterr().err
    assert "sft [2/4] training" in said and "chain [1/3] data" in said
    works.done.clear()
    assert run_all(recipe) == 0 and works.done == SCORES, "all is current"


def test_a_stage_that_fails_continues_with_the_same_command(file: Path, works: Works) -> None:
    recipe = load(file)
    works.fails["train sft"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run_all(recipe)
    assert works.done == ALL[:4]
    works.fails.clear()
    assert run_all(recipe) == 0 and works.done == [*ALL, *SCORES]


def test_failed_scores_of_a_stage_do_not_keep_the_others(file: Path, works: Works) -> None:
    works.fails["eval sft"] = ScoresFailed("sums: no such file", True)
    with pytest.raises(ScoresFailed):
        run_all(load(file))
    assert works.done == [*(name for name in ALL if name != "eval sft"), *SCORES]


def test_stage_on_the_command_line(
    file: Path, works: Works, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.txt", "chats.jsonl", "sums.jsonl"):
        (tmp_path / name).write_text("x\n")
    assert replica(["data", str(file), "--stage", "sft"]) == 0 and works.done == ["data sft"]
    assert replica(["train", str(file), "--stage", "grpo", "stages.grpo.train.steps=2"]) == 0
    assert works.done[-1] == "train grpo"
    assert load(tmp_path / "run" / "stages" / "grpo" / "recipe.yaml").train.steps == 2
    capsys.readouterr()
    assert replica(["show", str(file), "--stage", "grpo", "--run-directory"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run" / "stages" / "grpo")
    assert replica(["train", str(file), "--stage", "grop"]) == 2
    assert "has no stage `grop`; it has base, sft, grpo" in capsys.readouterr().err
    assert replica(["show", str(file), "--stage", "sft", "train.precision=fp32"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["precision:", "fp32", "#", "override", "train.precision=fp32,", "inherited"] in shown
    assert ["steps:", "4", "#", "chain.yaml"] in shown and ["kind:", "sft", "#", "chain.yaml"] in shown


def test_files_of_stages_are_looked_for_before_the_run(file: Path, works: Works, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x\n")
    (tmp_path / "sums.jsonl").write_text("x\n")
    from launch.planning.checks import check

    with pytest.raises(RecipeError, match=r"(?s)1 problem in .*data\.sources `chats`"):
        check(load(file), trains_here=True, stages=True)
    check(load(file), trains_here=True)

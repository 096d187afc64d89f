"""The report of a run with stages: the tree, scores along it, curves, rollouts, gates on stages."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from configs.schema.evaluation import PerplexitySet
from configs.schema.recipe import load_run
from eval.report.chain import shown
from eval.report.gates import check_gates, evaluate_gates, gate_problems, results_of_stages
from eval.report.page import write_report
from eval.report.stamp import page_is_current, write_stamp
from eval.results import Results, load_results
from eval.suite import _beside_parent
from launch.headlines import print_headlines
from tests.parts.fake_chain import chain_recipe, write_fake_chain
from tests.parts.fake_run import fake_results
from tests.parts.scored_run import right_or_wrong, score, write_scores
from tests.unit.eval.report.test_page import Checker


def read(page: Path) -> tuple[Checker, str]:
    checker = Checker()
    checker.feed(page.read_text(encoding="utf-8"))
    assert not checker.open
    return checker, " ".join(" ".join(checker.text).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_fake_chain(tmp_path_factory.mktemp("chain") / "run")
    for name in ("sft", "reward", "dpo", "grpo"):
        write_report(run / "stages" / name)
    write_report(run)
    return run


def test_the_page_of_the_base_shows_the_chain(run: Path) -> None:
    page, text = read(run / "report" / "index.html")
    headings = [heading.strip() for heading in page.headings]
    assert headings[:6] == ["The stages", "Scores along the stages", "sft", "reward", "dpo", "grpo"]
    for expected in (
        "raw files gutenberg efefefefefef",
        "sums 86.2% [82.9, 88.9]",
        "390 conversations",
        "195 pairs",  # a pair is two documents
        "hh: reward model 61.1% [56.6, 65.4] hh: longer is chosen 59.4% [54.9, 63.7]",
        "86.2% ▲",
        "41.6% =",
        "Drawn for step 1 the first rollout",
        "Drawn for step 200 the last rollout",
        "What is 0 + 42? → #### 42",
        "reward 0, exact_answer 0, format 1, read as “17 and so on”; right would be 42",
        "Reward per answer",
        "Divergence from the start (KL), nats per token",
        "Length of answers, tokens",
        "Share of right answers",
        "All 2 gates pass",
    ):
        assert expected in text, expected
    links = [load for load in page.loads if load != "data:,"]
    assert set(links) == {f"../stages/{name}/report/index.html" for name in ("sft", "reward", "dpo", "grpo")}
    assert all((run / "report" / link).resolve().is_file() for link in links)
    html = (run / "report" / "index.html").read_text()
    assert "<b>7</b>" not in html and "&lt;b&gt;7&lt;/b&gt; &amp; 9?" in html


def test_the_page_of_a_stage_stands_beside_its_parent(run: Path) -> None:
    page, text = read(run / "stages" / "grpo" / "report" / "index.html")
    assert [heading.strip() for heading in page.headings][:4] == ["Beside sft", "Answers", "What it drew in training",
                                                                  "Training"]  # fmt: skip
    for expected in (
        "Reinforcement learning (GRPO), from sft.",
        "+43.8 [+40.8, +46.8]",
        "▲ better p = 1e-09: McNemar's exact test over 500 items: 230 gained, 11 lost",
        "right answers sums",
    ):
        assert expected in text, expected
    assert [load for load in page.loads if load != "data:,"] == ["../../../report/index.html"]
    _, reward = read(run / "stages" / "reward" / "report" / "index.html")
    assert "fewer repetitions are chosen" in reward and "Held-out text" not in reward


def test_a_stage_without_results_is_named_and_its_gates_fail(tmp_path: Path) -> None:
    run = write_fake_chain(tmp_path / "run", without="grpo")
    _, text = read(write_report(run))
    assert "not scored yet" in text and "2 of 2 gates fail" in text
    assert [gate.reason for gate in check_gates(run)] == ["no score: stage `grpo` has no results yet"] * 2
    shutil.rmtree(run / "stages")
    assert "not scored yet" in read(write_report(run))[1]


def test_a_bound_stands_behind_a_sign() -> None:
    score = fake_results().results[0]
    assert [shown(one) for one in (score, replace(score, note="upper bound, 8 draws"))] == ["2.214", "≤ 2.214"]


def test_gates_name_scores_of_stages(run: Path) -> None:
    gates = check_gates(run)
    assert [(gate.passed, gate.left, gate.right) for gate in gates] == [(True, 0.862, 0.8), (True, 0.862, 0.424)]
    with pytest.raises(ValueError, match=r"near: .*grpo:chat/sums/accuracy"):
        evaluate_gates(["grpo:chat/sum/accuracy > 0.8"], fake_results(), results_of_stages(load_run(run)))


@pytest.mark.parametrize(
    ("gate", "problem"),
    [
        ("grpo:chat/sums/accuracy > 0.8", None),
        ("grpo:chat/sums/accuracy > sft:chat/sums/accuracy", None),
        ("reward:preference/hh/accuracy > reward:preference/hh/longer", None),
        ("chat/sums/accuracy > 0.8", "near: .*chat/sums/accuracy"),
        ("reward:chat/sums/accuracy > 0.8", "no metric `reward:chat/sums/accuracy`"),
        ("sft:preference/hh/accuracy > 0.8", "near: .*reward:preference/hh/accuracy"),
        ("rl:chat/sums/accuracy > 0.8", "no metric `rl:chat/sums/accuracy`"),
        ("grpo:conversations/sft/nats_per_token < 9", None),
        ("grpo:conversations/dpo/nats_per_token < 9", "near: .*grpo:conversations/sft"),
        ("sft:perplexity/heldout/bits_per_byte < compression/heldout/xz_bits_per_byte", None),
        ("sft:compression/heldout/xz_bits_per_byte > 1", "no metric `sft:compression"),
    ],
)
def test_gates_are_checked_before_training(tmp_path: Path, gate: str, problem: str | None) -> None:
    """A base whose vocabulary has no chat tokens has no answers, so the gate must name a stage."""
    recipe = chain_recipe(tmp_path, [gate])
    texts = {"perplexity": [PerplexitySet(name="heldout", path="/nowhere/heldout.jsonl")]}
    evaluation = recipe.evaluation.model_copy(update=texts)
    problems = gate_problems(recipe.model_copy(update={"evaluation": evaluation}))
    assert len(problems) == (problem is not None)
    assert problem is None or re.search(problem, problems[0])


def test_the_page_is_stale_when_a_stage_was_scored_again(tmp_path: Path) -> None:
    run = write_fake_chain(tmp_path / "run")
    write_report(run)
    write_stamp(run, None)
    assert page_is_current(run)
    results = run / "stages" / "dpo" / "results.json"
    results.write_text(results.read_text().replace("0.416", "0.417"))
    assert not page_is_current(run)


def test_headlines_of_a_stage_tell_what_became_of_them(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_headlines(run / "stages" / "grpo", "demo.grpo")
    lines = capsys.readouterr().out.splitlines()
    (sums,) = (line for line in lines if "chat/sums/accuracy" in line)
    assert "since sft" in lines[1] and sums.split()[-1] == "better" and "0.8620" in sums
    print_headlines(run / "stages" / "reward")
    assert "preference/hh/longer" in capsys.readouterr().out


def test_a_stage_is_compared_with_its_parent_item_by_item(tmp_path: Path) -> None:
    run, name = write_fake_chain(tmp_path / "run"), "chat/sums/accuracy"

    def scored(directory: Path, right: int) -> Results:
        items = right_or_wrong("sums", [1] * right + [0] * (500 - right), metric="accuracy")
        own = score(name, items, "accuracy", higher_is_better=True)
        return load_results(write_scores(directory, {"chat/sums": items}, [own]))

    parent, stage_run = run / "stages" / "sft", run / "stages" / "grpo"
    scored(parent, 212)
    results, recipe = scored(stage_run, 431), load_run(run).stage("grpo")
    stage, changes = _beside_parent(recipe, results, stage_run)
    assert stage == {"name": "grpo", "kind": "grpo", "parent": "sft", "parent_results": "0f" * 16}
    (change,) = changes
    assert (change.verdict, change.against, change.n) == ("better", "sft", 500)
    assert change.method == "McNemar's exact test: 219 gained, 0 lost"
    (parent / "results.json").unlink()
    assert _beside_parent(recipe, results, stage_run) == ({**stage, "parent_results": None}, [])
    assert _beside_parent(load_run(run), results, run) == ({}, [])

"""Any number of runs on one page: what is said of them, and what the command does."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.comparison.many_runs import compare
from eval.comparison_report.comparison_curves import flops_of, read_curves
from eval.comparison_report.comparison_page import write_comparison
from eval.comparison_report.recipe_differences import recipe_differences
from eval.results import load_results
from launch.cli import main
from launch.headlines import print_comparison
from tests.parts.fake_run import fake_recipe, fake_results, write_fake_run, write_metrics
from tests.parts.scored_run import documents, right_or_wrong, score, write_scores
from tests.unit.eval.report.test_page import check_page

BITS, COPA = "perplexity/heldout/bits_per_byte", "benchmark/copa/acc"
HARD = np.random.default_rng(3).normal(2.0, 0.4, 60)


def run_with(directory: Path, gain: float = 0.0, right: int = 30, metrics: bool = True, **recipe: Any) -> Path:
    """A run whose documents are `gain` bits per byte easier, and with `right` of 60 answers."""
    write_fake_run(directory, gates=[])
    if not metrics:
        (directory / "metrics.jsonl").unlink()
    noise = np.random.default_rng(4 + right).normal(0, 0.02, 60)
    parts = {
        "perplexity/heldout": documents(HARD - gain + noise),
        "benchmark/copa": right_or_wrong("copa", [1] * right + [0] * (60 - right)),
    }
    scores = [score(BITS, parts["perplexity/heldout"], "bits_per_byte"), score(COPA, parts["benchmark/copa"])]
    made = fake_recipe(directory).model_dump(mode="json")
    made["train"] |= recipe
    made["data"]["directory"] = str(directory)
    return write_scores(directory, parts, scores, recipe=made)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run, another seed, and a better one."""
    top = tmp_path_factory.mktemp("runs")
    return [run_with(top / "one"), run_with(top / "two", right=29), run_with(top / "three", 0.05, 45, steps=2400)]


def test_three_runs_on_one_page(three: list[Path], tmp_path: Path) -> None:
    comparison = compare(three)
    page = check_page(write_comparison(comparison, tmp_path))
    assert page.headings == [
        "Scores", "Which differences are real", "Curves", "Runs", "What the recipes differ in",
    ]  # fmt: skip
    text = " ".join(" ".join(page.text).split())
    for expected in (
        "two, three against one",
        "two : 2 no difference.",
        "three : 2 better.",
        "all 4 differences tested",
        "15 gained, 0 lost",
        "train.steps 1200 1200 2400",
        "against training compute, FLOPs",
        "10.9M",
    ):
        assert expected in text, expected
    html = (tmp_path / "index.html").read_text()
    assert html.count("<svg") == 4, "bits per byte over tokens, compute and seconds; the loss over tokens"
    markdown = (tmp_path / "comparison.md").read_text()
    assert "- `three`: 2 better" in markdown and "| three | ▲ benchmark/copa/acc | +25.0 |" in markdown
    assert len({row.count("|") for row in markdown.split("\n\n")[3].splitlines()}) == 1
    data = json.loads((tmp_path / "comparison.json").read_text())
    assert data["reference"] == "one" and [run["name"] for run in data["runs"]] == ["one", "two", "three"]
    assert data["changes"]["three"][1]["adjusted"] < 0.001 and data["recipes"]["train.steps"] == [
        "1200",
        "1200",
        "2400",
    ]


def test_holm_covers_all_runs(three: list[Path], tmp_path: Path) -> None:
    """Seven gained answers are p = 0.016: real beside one other score, not among five."""
    seven = run_with(tmp_path / "seven", right=37)
    alone, among = compare([three[0], seven]), compare([*three, seven])
    assert {one.name: one.verdict for one in alone.changes["seven"]}[COPA] == "better"
    change = {one.name: one for one in among.changes["seven"]}[COPA]
    assert change.verdict == "no difference" and "among the 6 scores compared" in (change.reason or "")


def test_copies_of_results_and_runs_of_the_same_name(three: list[Path], tmp_path: Path) -> None:
    """An artifact of CI has no recipe and no metrics."""
    other = run_with(tmp_path / "ci" / "one", metrics=False)
    (other / "recipe.yaml").unlink()
    comparison = compare([three[0], other])
    assert [run.label for run in comparison.runs] == [f"{three[0].parent.name}/one", "ci/one"]
    page = check_page(write_comparison(comparison, tmp_path / "out"))
    assert "No metrics.jsonl, so no curve: ci/one." in " ".join(page.text)


def test_a_run_that_is_named_by_a_dot_is_called_by_its_directory(three: list[Path]) -> None:
    comparison = compare(three, [".", "..", three[2].name])
    assert [one.label for one in comparison.runs] == [run.name for run in three]


def test_the_command(three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path)]
    assert main(["compare", *map(str, three), *out]) == 0
    said = capsys.readouterr().out
    assert "three against one" in said and "▲ better" in said and said.splitlines()[-1] == str(tmp_path / "index.html")
    assert main(["compare", *map(str, three[:2]), "--gate", *out]) == 0
    assert main(["compare", *map(str, three[:2]), "--against", str(three[2]), "--gate", *out]) == 1
    assert "one against three" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    stranger = write_scores(tmp_path / "stranger", {}, fake_results().results[5:6])
    for wrong, message in (
        ([three[0]], "name two runs or more"),
        ([three[0], three[0]], "is given twice"),
        ([three[0], tmp_path / "empty"], "has no results.json"),
        ([three[0], stranger], "stranger has no score in common with one"),
        ([f"{three[0]}:sft", three[1]], "has no stage `sft`"),
    ):
        assert main(["compare", *map(str, wrong), *out]) == 2
        assert message in capsys.readouterr().err


def test_units_of_one_score_count_once_and_names_are_printed_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bits per byte and nats per token are one difference, on the page as in Holm's method."""
    runs = [run_with(tmp_path / name, gain) for name, gain in (("one", 0.0), ("two", 0.05))]
    for run, shots in zip(runs, (0, 5), strict=True):
        results = load_results(run)
        nats = replace(results.results[0], name="perplexity/heldout/nats_per_token")
        nats = replace(nats, value=nats.value * 4 * math.log(2), low=None, high=None)
        asked = replace(results.results[1], settings={"shots": shots})
        replace(results, results=[results.results[0], nats, asked]).save(run)
    comparison = compare(runs)
    assert comparison.tested == 1 and dict(comparison.counted("two")) == {"better": 1, "incomparable": 1}
    monkeypatch.setenv("COLUMNS", "40")
    print_comparison(comparison)
    said = capsys.readouterr().out
    assert "perplexity/heldout/nats_per_token " in said and "…" not in said
    assert f"≠ {COPA}: shots 5 against 0" in said, "why, beside the mark"


def test_what_a_seed_makes_is_no_difference_of_recipes(tmp_path: Path) -> None:
    runs = [
        run_with(tmp_path / "one"),
        run_with(tmp_path / "two", -0.05),
        run_with(tmp_path / "lr", 0.03, micro_batch_size=4),
    ]
    results = load_results(runs[1])
    replace(results, recipe={**results.recipe, "seed": 2}).save(runs[1])
    page = check_page(write_comparison(compare(runs), tmp_path / "out"))
    text = " ".join(" ".join(page.text).split())
    assert "two: the recipe of one with another seed." in text
    assert "the recipes differ in nothing but the seed" in text and "(the same recipe with another seed)" in text
    assert "another seed alone makes as large a difference" in text
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["other_seeds"] == ["two"]


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    runs = [run_with(tmp_path / name) for name in ("a|b", "<b>x")]
    results = load_results(runs[1])
    replace(results, recipe={**results.recipe, "name": "<i>", "seed": "<script>|"}).save(runs[1])
    check_page(write_comparison(compare(runs), tmp_path / "out"))
    html = (tmp_path / "out" / "index.html").read_text()
    assert "<b>x" not in html and "<script>|" not in html
    outside = re.sub("`[^`]*`", "", (tmp_path / "out" / "comparison.md").read_text())
    assert "<b>x" not in outside and "a|b" not in outside.replace("a\\|b", ""), "only code spans have them as they are"


def test_differences_of_recipes() -> None:
    """By path; lists by the names of their entries; places and names make no difference."""
    base = fake_results()

    def results(sources: list[dict[str, Any]], **more: Any) -> Any:
        return replace(base, recipe={"name": more.pop("name", "n"), "data": {"sources": sources}, **more})

    web, wiki = {"name": "web", "weight": 1}, {"name": "wiki", "weight": 2}
    found = recipe_differences([
        results([web, wiki], train={"optimizer": {"lr": 1e-3}}, name="a", out="here"),
        results([wiki, {**web, "weight": 3}], train={"optimizer": {"lr": 2e-3}, "compile": True}, name="b"),
    ])  # fmt: skip
    assert found == [
        ("data.sources.web.weight", ["1", "3"]),
        ("train.optimizer.lr", ["0.001", "0.002"]),
        ("train.compile", ["–", "true"]),
    ]
    other = replace(base, versions={**base.versions, "torch": "2.11.0"})
    assert recipe_differences([base, other]) == [("package torch", ["2.13.0", "2.11.0"])]


def test_curves_over_tokens_compute_and_seconds(tmp_path: Path) -> None:
    write_metrics(tmp_path)
    results = replace(fake_results(), recipe=fake_recipe(tmp_path).model_dump(mode="json"))
    results = replace(results, model={**results.model, "vocab_size": 2048})
    curves = read_curves("a", tmp_path, results)
    assert curves is not None and read_curves("a", tmp_path / "nowhere", results) is None
    tokens, compute = (curves.points("val/bits_per_byte", across) for across in ("tokens", "compute"))
    assert [x for x, _ in tokens] == [100 * 4096 * number for number in range(1, 13)]
    assert compute[0] == (tokens[0][0] * flops_of(results), tokens[0][1])
    assert 6 * 4.7e6 < flops_of(results) < 6 * 8e6
    seconds = curves.points("val/bits_per_byte", "seconds")
    assert seconds[-1][0] == pytest.approx(1200 * 4096 / 24_000, rel=0.02)
    assert flops_of(replace(results, recipe={})) == 6 * results.model["parameters"]

"""A run beside its baseline: in the report, and in gates that compare with it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.schema.recipe import load_run
from eval.report.baseline import Baseline
from eval.report.gates import Gate, baseline_problems, check_gates, gate_problems, gates_without_baseline
from eval.report.page import write_report
from eval.report.stamp import page_fingerprint
from eval.results import Failure, load_results
from launch.headlines import print_verdict
from tests.parts.fake_run import fake_results, write_fake_run
from tests.parts.scored_run import documents, right_or_wrong, score, write_scores
from tests.unit.eval.report.test_page import Checker

BITS, COPA = "perplexity/heldout/bits_per_byte", "benchmark/replica_copa/acc"
HARD = np.random.default_rng(3).normal(2.0, 0.4, 60)


def run_with(directory: Path, gain: float = 0.0, right: int = 30, gates: tuple[str, ...] = (), **more: Any) -> Path:
    """A run of two scores with their items: `gain` in bits per byte, and `right` answers of 60."""
    texts = documents(HARD - gain - np.random.default_rng(4).normal(0, 0.02, 60) * (gain != 0))
    answers = right_or_wrong("replica_copa", [1] * right + [0] * (60 - right))
    write_fake_run(directory, gates=list(gates))
    scores = [score(BITS, texts, "bits_per_byte"), score(COPA, answers)]
    return write_scores(directory, {"perplexity/heldout": texts, "benchmark/replica_copa": answers}, scores, **more)


def verdicts(run: Path, baseline: Path | None) -> list[tuple[bool, str]]:
    return [(gate.passed, (gate.detail or gate.reason or "").split(":")[0]) for gate in check_gates(run, baseline)]


GATES = (f"{BITS} not worse than baseline", f"{BITS} better than baseline", f"{COPA}  not  worse than baseline ")


@pytest.mark.parametrize(
    ("gain", "right", "expected"),
    [
        (0.0, 30, [(True, "no difference"), (False, "no difference"), (True, "no difference")]),
        (0.03, 40, [(True, "better"), (True, "better"), (True, "better")]),
        (-0.03, 20, [(False, "worse"), (False, "worse"), (False, "worse")]),
        (0.03, 26, [(True, "better"), (True, "better"), (True, "no difference")]),
    ],
)
def test_gates_ask_the_paired_test(tmp_path: Path, gain: float, right: int, expected: list[tuple[bool, str]]) -> None:
    """0.03 bits are far less than the interval of either score."""
    run = run_with(tmp_path / "run", gain, right, GATES)
    assert verdicts(run, run_with(tmp_path / "before")) == expected


def test_a_copy_of_results_and_items_is_a_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As CI keeps it: results.json and scores/*.items.parquet, without the run."""
    before, artifact = run_with(tmp_path / "before"), tmp_path / "green"
    (artifact / "scores").mkdir(parents=True)
    shutil.copy(before / "results.json", artifact)
    for file in (before / "scores").glob("*.items.parquet"):
        shutil.copy(file, artifact / "scores")
    run = run_with(tmp_path / "run", 0.03, 20, GATES)
    gates = check_gates(run, artifact)
    assert [gate.passed for gate in gates] == [True, True, False]
    assert "better: " in str(gates[0]) and "60 items; approximate randomisation" in str(gates[0])
    assert "[-" in str(gates[2]) and "McNemar's exact test: 0 gained, 10 lost" in str(gates[2])
    page = Checker()
    page.feed(write_report(run, artifact).read_text(encoding="utf-8"))
    assert "Beside the baseline" in page.headings
    text = " ".join(" ".join(page.text).split())
    assert "Against green" in text and "▼ worse" in text and "▲ better" in text and "1 of 3 gates fail" in text
    summary = (run / "report" / "report.md").read_text()
    assert "Against `green`" in summary and "10 lost" in summary
    assert print_verdict(run, baseline=artifact) == 1
    assert "gate FAILED: benchmark/replica_copa/acc" in capsys.readouterr().out


def test_the_recipe_can_name_the_baseline(tmp_path: Path) -> None:
    before, run = run_with(tmp_path / "before"), run_with(tmp_path / "run", 0.03, gates=GATES[:1])
    without = page_fingerprint(run, None)
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("baseline: null", f"baseline: {before}"))
    assert load_run(run).report.baseline == str(before)
    assert [gate.passed for gate in check_gates(run)] == [True]
    assert "Against <b>before</b>" in write_report(run).read_text()
    assert page_fingerprint(run, None) == page_fingerprint(run, before) != without


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("perplexity/heldout/bits_per_bit better than baseline", "near: perplexity/heldout/bits_per_byte"),
        (f"{BITS} worse than baseline", "write it as"),
        (f"{BITS} not worse than {COPA}", "write it as"),
        (f"{BITS} == 2 (whole interval)", "a whole interval equals no value"),
        (f"{BITS} < 2 (whole)", "write it as"),
    ],
)
def test_a_gate_that_cannot_be_evaluated(tmp_path: Path, gate: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_gates(run_with(tmp_path / "run", gates=(gate,)))


def test_a_program_is_not_compared_with_a_baseline(tmp_path: Path) -> None:
    """The size that gzip makes of a set says nothing of a model, so the gate says that, not that a score is missing."""
    name = "compression/heldout/gzip_bits_per_byte"
    run, other = run_with(tmp_path / "run", gates=(f"{name} not worse than baseline",)), run_with(tmp_path / "other")
    for one in (run, other):
        results = load_results(one)
        replace(results, results=[*results.results, replace(results.results[0], name=name)]).save(one)
    (found,) = check_gates(run, other)
    assert not found.passed and (found.reason or "").startswith("it is no score of a model, but of a program")


def test_a_gate_that_needs_a_baseline_has_not_passed_without_one(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", gates=(GATES[0], f"{BITS} < 3"))
    gates = check_gates(run)
    assert [(gate.passed, gate.undecided) for gate in gates] == [(False, True), (True, False)]
    assert (
        gates[0].reason == "there is no baseline; set report.baseline to a run, or name one: replica report RUN "
        "--baseline RUN"
    )
    page = write_report(run).read_text()
    assert "there is no baseline" in page and "Without a baseline, 1 of 2 gates is not decided" in page
    assert "? not decided" in page and "✗ fails" not in page


def test_a_baseline_without_scores_or_with_other_ones(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", gates=GATES[2:])
    with pytest.raises(ValueError, match=r"nowhere has no results\.json: evaluate the run first"):
        check_gates(run, tmp_path / "nowhere")
    other = write_scores(tmp_path / "other", {}, [])
    (gate,) = check_gates(run, other)
    assert not gate.passed and gate.reason == "the baseline other has no such score"
    with pytest.raises(ValueError, match="have no score in common"):
        write_report(run, other)
    items = right_or_wrong("replica_copa", [1] * 60)
    shots = write_scores(tmp_path / "shots", {}, [score(COPA, items, settings={"shots": 5})])
    (gate,) = check_gates(run, shots)
    assert not gate.passed and gate.reason == "incomparable: shots unknown against 5"
    failed = run_with(tmp_path / "failed", gates=GATES[2:], failures=[Failure("benchmark/replica_copa", "no file")])
    results = load_results(failed)
    replace(results, results=results.results[:1]).save(failed)
    (gate,) = check_gates(failed, run)
    assert not gate.passed and gate.reason == "no score: no file"


def test_problems_are_found_before_training(tmp_path: Path) -> None:
    recipe = load_run(write_fake_run(tmp_path / "run", gates=[GATES[0]]))
    section = recipe.evaluation.model_copy(update={"perplexity": []})
    assert "there is no metric" in gate_problems(recipe.model_copy(update={"evaluation": section}))[0]
    assert baseline_problems(recipe) == [], "`replica report --baseline` may name one, as CI does"
    (note,) = gates_without_baseline(recipe)
    assert note.startswith(f"gate `{GATES[0]}` needs a baseline: set report.baseline")

    def naming(path: Path) -> list[str]:
        own = recipe.report.model_copy(update={"baseline": str(path)})
        named = recipe.model_copy(update={"report": own})
        assert gates_without_baseline(named) == []
        return baseline_problems(named)

    assert naming(run_with(tmp_path / "before")) == []
    (problem,) = naming(tmp_path / "nowhere")
    assert problem.startswith("report.baseline: ") and "has no results.json" in problem


@pytest.mark.parametrize(
    ("condition", "passed", "words"),
    [
        ("< 2.27", True, "2.26, the upper end of the interval, against 2.27"),
        ("< 2.25", False, "2.26, the upper end"),
        ("<= 2.26", True, "upper end"),
        ("> 2.1", True, "2.168, the lower end"),
        ("> 2.2", False, "2.168, the lower end"),
        ("< compression/heldout/xz_bits_per_byte", True, "against 2.562"),
    ],
)
def test_whole_interval(tmp_path: Path, condition: str, passed: bool, words: str) -> None:
    """Of 2.214 ± 0.046; a compressor's score has no width, and its ends are its value."""
    (gate,) = check_gates(write_fake_run(tmp_path, gates=[f"{BITS} {condition} (whole interval)"]))
    assert gate.passed is passed and words in (gate.detail or "")


def test_whole_interval_of_a_score_without_one(tmp_path: Path) -> None:
    results = [replace(one, low=None, high=None, interval="none: a single item") for one in fake_results().results]
    replace(fake_results(), results=results).save(write_fake_run(tmp_path, gates=[f"{BITS} < 3 (whole interval)"]))
    (gate,) = check_gates(tmp_path)
    assert isinstance(gate, Gate) and not gate.passed and "has no interval (none: a single item)" in (gate.reason or "")


def test_holm_covers_the_gates_and_not_the_other_scores(tmp_path: Path) -> None:
    """Six gained items: p = 0.031 alone. A gate was asked beforehand, the table of all scores was not."""
    run = run_with(tmp_path / "run", 1e-9, 36, (f"{COPA} better than baseline",))
    before = run_with(tmp_path / "before")
    assert [gate.passed for gate in check_gates(run, before)] == [True]
    change = {one.name: one for one in Baseline(run, load_results(run), before, 100).all_changes()}[COPA]
    assert (change.p, change.adjusted, change.verdict) == (0.03125, 0.0625, "no difference")
    assert change.reason == "p = 0.031 alone, 0.062 among the 2 scores compared"

"""Which scores may be compared, and what is said of those that may not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.comparison.comparable import difference, difference_within
from eval.comparison.paired import Scores, compare_scores
from eval.report.baseline import Baseline
from eval.report.gates import check_gates, evaluate_gates
from eval.report.page import write_report
from eval.results import Change, Failure, Result, load_results
from tests.parts.fake_run import fake_results, write_fake_run

SIGNATURE = "nrefs:1|bs:1000|seed:12345|case:mixed|tok:13a|version:2.6.0"


def score(name: str = "translation/t/bleu", value: float = 30.0, **more: Any) -> Result:
    own: dict[str, Any] = {"low": value - 1, "high": value + 1, "n": 8, "unit": "BLEU", "higher_is_better": True}
    own |= {
        "interval": "bootstrap",
        "signature": SIGNATURE,
        "set": "a" * 32,
        "settings": {"shots": 4, "new tokens": 96},
    }
    return Result(name, value, **{**own, **more})


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({}, None),
        ({"value": 50.0, "low": 49.0, "high": 51.0}, None),
        ({"signature": SIGNATURE.replace("bs:1000", "bs:100")}, None),
        ({"set": "b" * 32}, "another set: as many units, other content"),
        ({"n": 9, "set": "b" * 32}, "another set: 8 against 9 units"),
        ({"settings": {"shots": 0, "new tokens": 96}}, "shots 4 against 0"),
        ({"settings": {"shots": 4}}, "new tokens 96 against unknown"),
        ({"signature": SIGNATURE.replace("13a", "zh")}, "tok 13a against zh"),
        ({"tokenizer": "t"}, "another tokenizer, and the unit is per token"),
        ({"task_version": "2.0"}, "task version None against 2.0"),
        ({"unit": "chrF2"}, "unit `BLEU` against `chrF2`"),
        (
            {"set": "b" * 32, "task_version": "2"},
            "another set: as many units, other content; task version None against 2",
        ),
    ],
)
def test_what_differs_is_said(other: dict[str, Any], reason: str | None) -> None:
    assert difference(score(), score(**other)) == reason


def scores(directory: Path, *given: Result) -> Scores:
    replace(fake_results(), results=list(given)).save(directory)
    return Scores.read(directory)


def test_no_claim_without_an_interval_that_has_a_width(tmp_path: Path) -> None:
    """Of scores without items."""

    def change(one: Result, other: Result) -> Change:
        (found,) = compare_scores(scores(tmp_path / "after", one), scores(tmp_path / "before", other))
        return found

    apart = {"value": 50.0, "low": 49.0, "high": 51.0}
    for missing in ({"low": None, "high": None}, {"low": 30.0, "high": 30.0}):
        for pair in ((score(**apart), score(**missing)), (score(**missing), score(**apart))):
            found = change(*pair)
            assert found.verdict == "incomparable" and "no interval" in (found.reason or "")
    nothing = score(low=None, high=None)
    assert change(nothing, nothing).verdict == "no difference"
    infinite = score(value=np.inf, low=9.0, high=np.inf)
    found = change(infinite, infinite)
    assert found.verdict == "incomparable" and "both are infinite" in (found.reason or "")
    assert change(infinite, score()).verdict == change(score(), infinite).verdict == "incomparable"


def test_other_tokenizers_have_no_better_perplexity(tmp_path: Path) -> None:
    """Per token nothing can be claimed; per byte it can."""
    results = fake_results()
    ours, theirs = results.by_name(), {}
    for name in ("perplexity/heldout/perplexity", "perplexity/heldout/bits_per_byte"):
        per_token = name.endswith("perplexity")
        ours[name] = replace(ours[name], set="s", tokenizer="bpe" if per_token else None)
        theirs[name] = replace(ours[name], value=9.0, low=8.9, high=9.1, tokenizer="byte" if per_token else None)
    run = write_fake_run(tmp_path / "run", gates=[], results=list(ours.values()))
    before = write_fake_run(tmp_path / "before", results=list(theirs.values()))
    changes = Baseline(run, load_results(run), before, 100).all_changes()
    verdicts = {change.name.rsplit("/", 1)[1]: change.verdict for change in changes}
    assert verdicts == {"perplexity": "incomparable", "bits_per_byte": "better"}
    page = write_report(run, before).read_text()
    assert "another tokenizer, and the unit is per token" in page and page.count("≠ incomparable") == 1
    assert "another tokenizer" in (run / "report" / "report.md").read_text()


def test_gates_compare_only_what_can_be_compared(tmp_path: Path) -> None:
    results = fake_results()
    bits, xz = "perplexity/heldout/bits_per_byte", "compression/heldout/xz_bits_per_byte"
    assert difference_within(results.by_name()[bits], results.by_name()[xz]) is None
    cases = {
        f"{bits} < {xz}": None,
        f"{bits} < perplexity/heldout/perplexity": "incomparable: unit",
        "benchmark/replica_copa/acc > benchmark/replica_piqa/acc": "incomparable: another set",
        "translation/classical-zh/bleu < translation/classical-zh/copy_bleu": None,
    }
    for text, reason in cases.items():
        (gate,) = evaluate_gates([text], results)
        assert gate.passed == (reason is None) and (gate.reason or "").startswith(reason or ""), text
        assert (gate.reason is None) == (reason is None)
    run = write_fake_run(tmp_path, gates=list(cases))
    assert "incomparable: unit" in write_report(run).read_text()


def test_a_gate_is_not_passed_by_a_bound_that_shows_nothing() -> None:
    """A bound below an exact score shows it; above, what it bounds may be on either side."""
    results = fake_results()
    bits, xz = "perplexity/heldout/bits_per_byte", "compression/heldout/xz_bits_per_byte"
    given = results.by_name()
    bound = replace(given[bits], note="upper bound, 16 draws", value=1.0, low=0.9, high=1.1)
    exact = replace(given[xz], value=2.0, low=1.9, high=2.1)
    of_bounds = replace(given[bits], note="made of upper bounds of nats, 16 draws", value=1.0, low=0.9, high=1.1)

    def outcome(ours: Result, gate: str, other: Result = exact) -> str:
        (found,) = evaluate_gates([gate], replace(results, results=[ours, other]))
        return "passes" if found.passed else (found.reason or "fails")

    hidden = f"incomparable: {bits} is an upper bound; what it bounds may be below {xz}"
    assert outcome(bound, f"{bits} < {xz}") == outcome(bound, f"{xz} >= {bits} (whole interval)") == "passes"
    assert outcome(replace(bound, value=3.0), f"{bits} < {xz}") == "fails"
    assert outcome(replace(bound, value=3.0), f"{bits} > {xz}") == hidden
    assert outcome(replace(bound, value=3.0), f"{xz} < {bits}") == hidden
    both = replace(exact, note="upper bound, 16 draws", value=0.5)
    assert outcome(bound, f"{bits} > {xz}", both) == "passes", "two bounds are compared as the numbers that they are"
    assert outcome(bound, f"{bits} > 0.5") == "passes", "a number is the author's"
    assert outcome(of_bounds, f"{bits} < {xz}").startswith(f"incomparable: {bits} is made of upper bounds")


def test_a_gate_on_a_score_that_failed(tmp_path: Path) -> None:
    failures = [Failure("translation/wmt", "no such file | anywhere")]
    run = write_fake_run(tmp_path, gates=["translation/wmt/bleu > 3", "3.0 < 4"][:1], failures=failures)
    (gate,) = check_gates(run)
    assert not gate.passed and gate.left is None and str(gate).endswith("(no score: no such file | anywhere)")
    page = write_report(run).read_text()
    assert "Scores that could not be made" in page and "no such file | anywhere" in page
    assert "no such file" in (run / "report" / "report.md").read_text()
    with pytest.raises(ValueError, match="there is no metric `translation/wm/bleu`"):
        evaluate_gates(["translation/wm/bleu > 3"], fake_results())

"""Which scores may be compared, and what is said of those that may not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.comparison.comparable import difference, difference_within
from eval.report.gates import check_gates, compare, evaluate_gates
from eval.report.page import write_report
from eval.results import Failure, Result, Results
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


def only(result: Result) -> Results:
    return replace(fake_results(), results=[result])


def test_no_claim_without_an_interval_that_has_a_width() -> None:
    apart = {"value": 50.0, "low": 49.0, "high": 51.0}
    for missing in ({"low": None, "high": None}, {"low": 30.0, "high": 30.0}):
        for pair in ((score(**apart), score(**missing)), (score(**missing), score(**apart))):
            (delta,) = compare(only(pair[0]), only(pair[1]))
            assert delta.verdict == "unknown" and "no interval" in (delta.reason or "")
    (delta,) = compare(only(score(low=None, high=None)), only(score(low=None, high=None)))
    assert delta.verdict == "same"
    (delta,) = compare(only(score(value=np.inf, low=9.0, high=np.inf)), only(score(value=np.inf, low=9.0, high=np.inf)))
    assert delta.verdict == "same" and delta.change == 0


def test_other_tokenizers_have_no_better_perplexity(tmp_path: Path) -> None:
    """Per token nothing can be claimed; per byte it can."""
    results = fake_results()
    ours, theirs = results.by_name(), {}
    for name in ("perplexity/heldout/perplexity", "perplexity/heldout/bits_per_byte"):
        per_token = name.endswith("perplexity")
        ours[name] = replace(ours[name], set="s", tokenizer="bpe" if per_token else None)
        theirs[name] = replace(ours[name], value=9.0, low=8.9, high=9.1, tokenizer="byte" if per_token else None)
    now, before = (replace(results, results=list(scores.values())) for scores in (ours, theirs))
    verdicts = {delta.result.name.rsplit("/", 1)[1]: delta.verdict for delta in compare(now, before)}
    assert verdicts == {"perplexity": "incomparable", "bits_per_byte": "better"}
    run = write_fake_run(tmp_path / "run", gates=[], results=now.results)
    page = write_report(run, write_fake_run(tmp_path / "before", results=before.results)).read_text()
    assert "another tokenizer, and the unit is per token" in page and page.count("incomparable") == 1
    assert "incomparable: another tokenizer" in (run / "report" / "report.md").read_text()


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

"""An evaluation in parts: kept, made again, failing each by itself."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.items.item import Item
from eval.items.store import items_file, read_items
from eval.parts import Part, Scored, score_parts
from eval.results import Result, Sample, ScoreName, as_json, from_json


def result(name: str, value: float = 1.0, low: float | None = 0.5, high: float | None = 1.5) -> Result:
    return Result(name, value, low, high, 3, "nats", False, "bootstrap" if low is not None else "none: a single unit")


def part(name: str, inputs: object, calls: list[str], error: Exception | None = None) -> Part:
    def work() -> Scored:
        calls.append(name)
        if error is not None:
            raise error
        items = [Item("1", "0" * 16, "a", measures={"metric": (1.0, 1.0)})] if name == "b" else []
        return Scored([result(f"{name}/metric")], [Sample("prompt", name, "a", "b", "")], items)

    return Part(name, inputs, work)


def test_what_is_kept_is_not_made_again(tmp_path: Path) -> None:
    calls: list[str] = []
    make: Callable[[object], list[Part]] = lambda inputs: [part("a/é/../x", inputs, calls), part("b", 1, calls)]  # noqa: E731
    first = score_parts(make(1), tmp_path / "scores")
    assert [item.name for item in first.results] == ["a/é/../x/metric", "b/metric"] and len(first.samples) == 2
    assert score_parts(make(1), tmp_path / "scores") == first and calls == ["a/é/../x", "b"]
    score_parts(make(2), tmp_path / "scores")
    assert calls == ["a/é/../x", "b", "a/é/../x"]
    score_parts(make(2), tmp_path / "scores", again=True)
    assert calls[3:] == ["a/é/../x", "b"]
    for file in (tmp_path / "scores").glob("*.json"):
        file.write_text('{"fingerprint"')
    assert score_parts(make(2), tmp_path / "scores") == first and len(calls) == 7


def test_scores_without_their_items_are_made_again(tmp_path: Path) -> None:
    calls: list[str] = []
    first = score_parts([part("a", 1, calls), part("b", 1, calls)], tmp_path / "scores")
    table = read_items(tmp_path, "b")
    assert first.items == {"b": table.fingerprint} and [item.asked for item in table.items()] == ["a"]
    file = items_file(tmp_path / "scores", "b")
    whole = file.read_bytes()
    for damage in (b"", whole[:-9], None):
        file.write_bytes(damage) if damage is not None else file.unlink()
        calls.clear()
        assert score_parts([part("a", 1, calls), part("b", 1, calls)], tmp_path / "scores") == first
        assert calls == ["b"] and file.read_bytes() == whole
    score_parts([part("b", 2, calls)], tmp_path / "scores")
    others = file.read_bytes()  # items of other inputs, beside scores of these
    score_parts([part("b", 1, calls)], tmp_path / "scores")
    file.write_bytes(others)
    calls.clear()
    assert score_parts([part("b", 1, calls)], tmp_path / "scores").items == first.items and calls == ["b"]


def test_a_failing_part_is_named_and_the_others_follow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []
    parts = [
        part("a", 1, calls, ValueError("say what")),
        part("b", 1, calls, OverflowError("math range error")),
        part("c", 1, calls, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
        part("d", 1, calls),
    ]
    outcome = score_parts(parts, tmp_path)
    assert [(failure.name, failure.bug) for failure in outcome.failures] == [("a", False), ("b", True), ("c", False)]
    assert outcome.failures[1].reason == "OverflowError: math range error"
    assert [item.name for item in outcome.results] == ["d/metric"]
    error = capsys.readouterr().err
    assert "a failed: say what" in error and error.count("Traceback") == 1
    score_parts(parts, tmp_path)
    assert calls == ["a", "b", "c", "d", "a", "b", "c"], "only what failed is tried again"
    with pytest.raises(KeyboardInterrupt):
        score_parts([part("e", 1, calls, KeyboardInterrupt())], tmp_path)  # type: ignore[arg-type]


def test_a_score_that_two_parts_made_counts_once(tmp_path: Path) -> None:
    twice = [Part(name, name, lambda: Scored([result("benchmark/x/acc")])) for name in ("x", "group")]
    assert len(score_parts(twice, tmp_path).results) == 1


@pytest.mark.parametrize(
    "ends",
    [(1.0, None, None), (1.0, 0.5, 1.5), (1e300, 9.0, math.inf), (math.inf, 9.0, math.inf), (math.inf, None, None)],
)
def test_infinity_in_json(ends: tuple[float, float | None, float | None]) -> None:
    values = as_json(result("x", *ends))
    assert math.inf not in values.values()
    assert from_json(values) == result("x", *ends)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("perplexity/heldout/bits_per_byte", ("perplexity", "heldout", "bits_per_byte", "")),
        ("translation/wmt/bleu/clean", ("translation", "wmt", "bleu", "clean")),
        (
            "benchmark/gsm8k/exact_match/strict-match/touched",
            ("benchmark", "gsm8k", "exact_match", "strict-match/touched"),
        ),
        ("samples/prompts", ("samples", "prompts", "", "")),
    ],
)
def test_the_name_of_a_score_has_parts(name: str, parts: tuple[str, ...]) -> None:
    assert ScoreName.parse(name) == parts

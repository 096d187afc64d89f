"""What is said of a model whose loss is fine and whose scores are not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eval.remarks import remarks, tell
from eval.results import Result

COPA = Result("benchmark/copa/acc", 0.56, 0.46, 0.65, 100, "accuracy", True, "Wilson", chance=0.5)
PIQA = replace(COPA, name="benchmark/piqa/acc", n=200)
UNKNOWN = replace(COPA, name="benchmark/lambada/acc", chance=None)
OURS = Result("perplexity/zh/bits_per_byte", 3.1, 3.0, 3.2, 9, "bits per byte", False, "bootstrap")
GZIP = Result("compression/zh/gzip_bits_per_byte", 3.0, 3.0, 3.0, 9, "bits per byte", False, "exact")


def test_every_score_is_chance() -> None:
    found = remarks([COPA, PIQA, UNKNOWN])
    assert list(found) == ["chance"]
    assert found["chance"].startswith(
        "none of the 2 scores with a known chance is above guessing (benchmark/copa/acc, "
    )
    assert "100 to 200 items each" in found["chance"] and "too small or too early" in found["chance"]


@pytest.mark.parametrize(
    "results",
    [
        [COPA, replace(PIQA, value=0.61, low=0.51, high=0.7)],  # one is above
        [UNKNOWN],
        [replace(COPA, low=None, high=None)],
        [],
    ],
    ids=["one is above", "no chance is known", "no interval", "nothing"],
)
def test_nothing_is_said_where_it_is_not_so(results: list[Result]) -> None:
    assert remarks(results) == {}


def test_worse_than_guessing_is_not_above() -> None:
    assert "chance" in remarks([replace(COPA, value=0.3, low=0.2, high=0.4)])


def test_a_text_that_a_program_knows_better() -> None:
    (text,) = remarks([OURS, GZIP]).values()
    assert "perplexity/zh/bits_per_byte is 3.100, no better than gzip -9 (3.000)" in text
    assert remarks([replace(OURS, value=2.9), GZIP]) == {} == remarks([OURS])


def test_findings_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    tell([COPA])
    assert capsys.readouterr().err.startswith("note: the score with a known chance is not above guessing")

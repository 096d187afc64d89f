"""The answer checker: every answer of the table, and time that grows with the text alone."""

from __future__ import annotations

import time

import pytest

from pretrain.rewards.answers import check_answer, last_answer
from pretrain.rewards.format import check_format
from tests.parts.answers_table import ANSWERS


@pytest.mark.parametrize(("text", "reference", "value", "flags"), ANSWERS, ids=[row[0][:24] for row in ANSWERS])
def test_an_answer_is_worth_what_the_table_says(text: str, reference: str, value: float, flags: tuple[str]) -> None:
    reward = check_answer(text, reference)
    assert (reward.value, reward.flags) == (value, flags)
    assert reward.matched is None or reward.matched in text


def test_the_table_is_large() -> None:
    assert len({(text, reference) for text, reference, *_ in ANSWERS}) == len(ANSWERS) >= 60


def test_what_was_matched_is_the_last_answer() -> None:
    assert check_answer("#### 1\n#### 2 apples\nwell", "2").matched == "2 apples"
    assert last_answer("no marker") is None


@pytest.mark.parametrize("reference", ["", "  ", "####", "#### ."])
def test_an_empty_reference_is_refused(reference: str) -> None:
    with pytest.raises(ValueError, match="reference is empty"):
        check_answer("#### 1", reference)


@pytest.mark.parametrize(
    "text",
    ["#### " + "1," * 500_000, "#### 1" * 200_000, "#### " + " " * 1_000_000, "####" + "a " * 500_000, "#" * 10**6],
)
def test_a_megabyte_takes_no_time(text: str) -> None:
    began = time.process_time()
    check_answer(text, "1")
    check_format(text)
    assert time.process_time() - began < 5  # a quadratic search takes hours


@pytest.mark.parametrize(
    ("text", "value", "flags"),
    [
        ("so\n#### 42", 1, ()),
        ("#### 42\n\n", 1, ()),
        ("#### anything", 1, ()),
        ("42", 0, ("no_marker",)),
        ("#### 1\n#### 2", 0, ("several_markers",)),
        ("#### 42\nthe end", 0, ("not_in_last_line",)),
        ("well ####  ", 0, ("empty_answer",)),
        ("", 0, ("no_marker",)),
    ],
)
def test_the_form_of_an_answer(text: str, value: float, flags: tuple[str, ...]) -> None:
    reward = check_format(text)
    assert (reward.value, reward.flags) == (value, flags)

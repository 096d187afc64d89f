"""The examples of the funnel page show the change, and nothing that is none."""

from __future__ import annotations

import difflib

import pytest

from data_prep.funnel.tally import Tally

LINES = [f"This is line {number} of a text.\n" for number in range(100)]
TEXT = "".join(LINES)


def shown(text: str, after: str, characters: int = 200) -> tuple[str, str]:
    tally = Tally(characters=characters)
    tally.example("normalize/normalized", "id", text, after=after)
    (example,) = tally.examples
    return example["excerpt"], example["after"]


def changes(left: str, right: str) -> list[str]:
    compared = difflib.ndiff(left.split("\n"), right.split("\n"))
    return [line for line in compared if line[0] in "+-"]


@pytest.mark.parametrize("place", [0, 1, 50, 98, 99])
@pytest.mark.parametrize("instead", ["", "Another.\n", "\n\n\n"])
def test_the_excerpt_is_where_the_change_is(place: int, instead: str) -> None:
    after = "".join([*LINES[:place], instead, *LINES[place + 1 :]])
    left, right = shown(TEXT, after)
    assert max(len(left), len(right)) <= 200
    expected = [f"- {LINES[place].strip()}", *(f"+ {line}" for line in instead.split("\n")[:-1])]
    assert sorted(changes(left, right)) == sorted(expected)


def test_an_end_that_was_cut_is_no_change() -> None:
    left, right = shown("\n\n" + TEXT, TEXT)
    assert changes(left, right) == ["- ", "- "] and len(left) > 100


def test_short_texts_are_shown_whole() -> None:
    assert shown("a\n\n\n\nb", "a\n\nb") == ("a\n\n\n\nb", "a\n\nb")
    assert shown("a", "") == ("a", "") and shown("", "a") == ("", "a")


def test_a_text_without_lines() -> None:
    left, right = shown("x" * 5000 + "  y" + "z" * 500, "x" * 5000 + " y" + "z" * 500)
    assert left != right and "  y" in left and "  y" not in right and len(left) == len(right) == 200

"""Every home that the glossary names is there, and defines what it is said to define; each word stands once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_ROW = re.compile(
    r"^\| (?P<word>[^|]+) \| (?P<meaning>[^|]+) \| `(?P<home>[^`|]+)`(?: · `(?P<name>\w+)`)? \|$", re.MULTILINE
)
TEXT = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
ROWS = [match.groupdict() for match in _ROW.finditer(TEXT)]


def defines(text: str, name: str) -> bool:
    """Whether a file's text defines a class, a function or a constant of this name."""
    return re.search(rf"^(?:\s*(?:async )?def|class) {name}\b|^{name}\b[^=\n]*=", text, flags=re.MULTILINE) is not None


def test_all_rows_are_read() -> None:
    tables = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith("| word")]
    assert len(ROWS) == len(tables) > 60


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["word"])
def test_a_word_has_its_home(row: dict[str, str]) -> None:
    file = ROOT / row["home"]
    assert file.is_file(), row["home"]
    if row["name"]:
        assert defines(file.read_text(encoding="utf-8"), row["name"]), f"{row['home']} defines no {row['name']}"


def test_each_word_stands_once_with_one_sentence() -> None:
    words = [row["word"] for row in ROWS]
    assert len(set(words)) == len(words)
    assert all(row["meaning"].endswith(".") for row in ROWS)


def test_a_name_that_is_only_used_is_not_defined() -> None:
    assert defines("class Vocab:\n    pass\n", "Vocab") and defines("SPLITS: tuple[str, ...] = ()\n", "SPLITS")
    assert not defines("from x import Vocab\nVocab.load(y)\n    Vocab = 3\n", "Vocab") and not defines(
        "class Vocabs:\n", "Vocab"
    )

"""A sample of a recipe's documents: how much is read, and what the page shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from configs.schema.recipe import Recipe, load
from configs.schema.sources import Source
from data_prep.documents.conversion import read_documents
from data_prep.stages.make_documents import evenly
from data_prep.stages.sample import sample
from launch.cli import main

SENTENCE = "The captain of the ship had seen it all before, and he said so to everyone who would listen to him. "


def recipe(tmp_path: Path) -> Recipe:
    """Twenty files of a hundred documents; of every ten one is short, one comes again, one has an address."""
    for number in range(20):
        with (tmp_path / f"{number:02d}.jsonl").open("w", encoding="utf-8") as stream:
            for row in range(100):
                text = f"Chapter {number} of {row}.\n" + SENTENCE * (row % 7 + 6) + f"{number} {row}"
                text = {1: "too short", 2: SENTENCE * 9, 3: f"{text}\nRead more"}.get(row % 10, text)
                stream.write(json.dumps({"id": f"{number}/{row}", "text": text}) + "\n")
    content = {
        "name": "s",
        "out": str(tmp_path / "run"),
        "data": {
            "sources": [{"name": "stories", "path": str(tmp_path / "*.jsonl")}],
            "quality": {"min_characters": 20},
            "lines": {"boilerplate": True},
            "tokenizer": {"kind": "byte"},
        },
        "model": {"num_layers": 1, "hidden_size": 8, "num_heads": 1},
        "train": {"steps": 1},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return load(file)


def test_a_first_look_then_the_whole_sample(tmp_path: Path) -> None:
    looks = list(sample(recipe(tmp_path), 160))
    read = [next(row for row in funnel if row["reason"] == "read")["documents"] for _, funnel in looks]
    assert read == [3 * 8, 160]  # eight files, evenly spaced
    page, funnel = looks[-1]
    counts = {row["reason"]: row["documents"] for row in funnel}
    assert counts == {"read": 160, "normalized": 0, "boilerplate": 0, "too_short": 16, "duplicate": 15, "kept": 129}
    text = page.read_text(encoding="utf-8")
    assert "dropped: too short" in text
    assert '<div class="gone">Read more</div>' in text, "what was taken out is shown beside what is left"
    assert "same as 0/2" in text, "a duplicate names the document that stays"
    assert not (tmp_path / "run" / "data" / "manifest.json").exists()


def test_the_table_is_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page is written twice, first with a few documents; the counts of those would only confuse."""
    made = recipe(tmp_path)
    assert main(["data", str(tmp_path / "recipe.yaml"), "--sample", "60"]) == 0
    printed = capsys.readouterr().out.splitlines()
    page = str(made.data_directory / "sample" / "funnel.html")
    assert [line for line in printed if line.endswith("funnel.html")] == [page, page]
    assert [line.split()[3] for line in printed if line.split()[1:3] == ["read", "read"]] == ["64"]


def test_limits_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("".join(f"line {number}\n" for number in range(100)))
    lines = Source(name="s", path=str(file), text_documents="line")
    assert len(list(read_documents(lines.model_copy(update={"max_documents": 7})))) == 7
    assert len(list(read_documents(lines.model_copy(update={"max_bytes": 25})))) == 4  # of seven bytes each


def test_evenly() -> None:
    assert evenly(range(10), 3) == [0, 3, 6]
    assert evenly(range(3), 8) == evenly(range(3), None) == [0, 1, 2]

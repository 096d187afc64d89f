"""Items of JSON files: after a broken one reading goes on at the next, and what is JSON is never cut."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.schema.data import Limits
from tests.parts.reading import read

ITEMS: list[dict[str, Any]] = [
    {"text": f"text {n}", "list": [{"a": [1, {"b": "}"}]}, "x"], "more": {"n": n, "o": {}}} for n in range(7)
]

LAYOUTS: dict[str, Callable[[list[str]], str]] = {
    "lines": "\n".join,
    "lines, CRLF": "\r\n".join,
    "list of lines": lambda items: "[" + ",\n".join(items) + "]\n",
    "list, lines of its own": lambda items: "[\n  " + ",\n  ".join(items) + "\n]\n",
    "commas first": lambda items: "[\n  " + "\n, ".join(items) + "\n]\n",
}
# What is done to an item, and how many of those behind it are lost with it.
BROKEN: dict[str, Callable[[str], str]] = {
    "open string": lambda item: item.replace('",', ",", 1),
    "open last string": lambda item: item.replace('"}', "}", 1),
    "open list": lambda item: item.replace("]", "", 1),
    "open object": lambda item: item[:-1],
    "cut at a comma": lambda item: item[: item.index(",") + 1],
    "cut at a colon": lambda item: item[: item.index(":") + 1],
    "cut in a string": lambda item: item[: item.index("text ") + 3],
    "one bracket too many": lambda item: item + "}",
    "mismatched": lambda item: item.replace("]", "}", 1),
    "a quote too many": lambda item: item.replace("text ", 'te"xt ', 1),
}


def found(path: Path, data: str) -> tuple[list[str], int, set[str]]:
    """Texts, how many records were none, and why."""
    path.write_bytes(data.encode())
    documents, rejected = read(path)
    assert sum(item.bytes for item in rejected) <= len(data.encode())
    return [document.text for document in documents], len(rejected), {item.reason for item in rejected}


@pytest.mark.parametrize("size", [1, 50, 2**20])
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "commas first"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_item_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, layout: str, size: int
) -> None:
    monkeypatch.setattr("data_prep.readers.json_items.CHUNK_BYTES", size)
    for at in (0, 3, 6):
        items = [json.dumps(item) for item in ITEMS]
        items[at] = BROKEN[name](items[at])
        texts, _, why = found(tmp_path / "f.json", LAYOUTS[layout](items))
        if name == "one bracket too many":  # which is behind an item that is whole
            assert texts == [item["text"] for item in ITEMS]
            continue
        assert texts == [item["text"] for item in ITEMS if item is not ITEMS[at]], (at, items[at])
        assert why <= {"invalid_json", "truncated_file"}
        assert why


@pytest.mark.parametrize("size", [1, 50, 2**20])
def test_an_open_string_in_indented_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("data_prep.readers.json_items.CHUNK_BYTES", size)
    whole = json.dumps(ITEMS, indent=2)
    for at in (0, 3):
        for bad in (f'"text {at}\n', f'"text {at},\n', f"text {at}\n"):
            texts, _, why = found(tmp_path / "f.json", whole.replace(f'"text {at}",\n', bad))
            assert texts == [f"text {n}" for n in range(7) if n != at], bad
            assert why == {"invalid_json"}


def test_line_ends_in_strings_lose_their_item_alone(tmp_path: Path) -> None:
    for layout in (LAYOUTS["lines"], LAYOUTS["list of lines"], lambda items: "[" + ",".join(items) + "]"):
        items = [json.dumps(item) for item in ITEMS]
        items[2] = items[2].replace("text", "te\nxt")
        texts, lost, why = found(tmp_path / "f.json", layout(items))
        assert texts == [f"text {n}" for n in range(7) if n != 2]
        assert (lost, why) == (1, {"invalid_json"})


def test_what_is_json_is_never_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)

    def value(depth: int) -> Any:
        kind = rng.randrange(6 if depth else 3)
        if kind < 3:
            return rng.choice(["", "a", "\n{", '\\"', "{\n", "}", ",", '"', 1, None, True, -2.5e3])
        if kind < 5:
            return {rng.choice(["a", "b", "{", "\n"]): value(depth - 1) for _ in range(rng.randrange(4))}
        return [value(depth - 1) for _ in range(rng.randrange(4))]

    for round_ in range(60):
        monkeypatch.setattr("data_prep.readers.json_items.CHUNK_BYTES", rng.choice([1, 2, 5, 64, 300]))
        items = [{"text": f"{round_} {n}", "v": value(4)} for n in range(rng.randrange(1, 6))]
        for indent in (None, 0, 1, 2):
            texts = [json.dumps(item, indent=indent) for item in items]
            for data in (json.dumps(items, indent=indent), *(layout(texts) for layout in LAYOUTS.values())):
                if indent is not None:
                    data = data.replace("\n{", rng.choice(["\n{", "\n\n \t{", "\n{\n"]))
                expected = [item["text"] for item in items]
                assert found(tmp_path / "f.json", data) == (expected, 0, set()), data


def test_a_broken_item_beyond_the_limit(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "x" * 600, "n": n}) for n in range(9)]
    lines[3] = lines[3][:-5] + '"open'
    (tmp_path / "f.json").write_text("\n".join(lines))
    documents, rejected = read(tmp_path / "f.json", Limits(record_bytes=1024))
    assert [document.metadata["n"] for document in documents] == [0, 1, 2, 4, 5, 6, 7, 8]
    assert [item.reason for item in rejected] == ["invalid_json"]

"""The small sets for assistants that the project ships: what they promise, and held-out data apart from training."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard

from configs.schema.chat import Shape, Unit
from data_prep.chat.messages import Conversation, Pair, Prompt
from data_prep.chat.shapes import to_unit

ROOT = Path(__file__).resolve().parents[3]
CORPUS = ROOT / "configs" / "corpus"


def records(name: str) -> list[dict[str, Any]]:
    data = zstandard.ZstdDecompressor().decompressobj().decompress((CORPUS / f"{name}.jsonl.zst").read_bytes())
    return [json.loads(line) for line in data.decode().splitlines()]


def units(name: str, shape: Shape, unit: Unit) -> list[Conversation | Pair | Prompt]:
    return [to_unit(record, shape, unit, None) for record in records(name)]


@pytest.mark.parametrize(
    ("name", "shape", "unit", "count"),
    [
        ("sums-train", "gsm8k", "conversation", 8993),
        ("sums-heldout", "gsm8k", "prompt", 1007),
        ("sums-pairs-train", "pairs", "pair", 2000),
        ("sums-pairs-heldout", "pairs", "pair", 500),
        ("gsm8k-sample", "gsm8k", "conversation", 200),
        ("seed-tasks", "alpaca", "conversation", 127),
        ("helpful-pairs-train", "hh", "pair", 206),
        ("helpful-pairs-heldout", "hh", "pair", 52),
    ],
)
def test_every_record_is_usable_and_has_an_id_of_its_own(name: str, shape: Shape, unit: Unit, count: int) -> None:
    assert len(units(name, shape, unit)) == count
    assert len({record["id"] for record in records(name)}) == count


def test_sums_are_right_and_no_held_out_sum_is_in_training() -> None:
    sides: dict[str, set[frozenset[int]]] = {}
    for name in ("sums-train", "sums-heldout", "sums-pairs-train", "sums-pairs-heldout"):
        found = sides.setdefault(name.rpartition("-")[2], set())
        for record in records(name):
            question = record.get("question", record.get("prompt"))
            a, b = map(int, re.findall(r"\d+", question))
            found.add(frozenset((a, b)))
            assert record.get("answer", record.get("chosen")) == f"#### {a + b}"
            assert record.get("rejected") != f"#### {a + b}"
    assert not sides["train"] & sides["heldout"]
    assert len(sides["train"] | sides["heldout"]) == 9955


def test_the_script_makes_the_files_that_are_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "sums", raising=False)
    import sums

    assert {side: [sums.question(a, b) for a, b in found] for side, found in sums.split_sums().items()} == {
        side: records(f"sums-{side}") for side in ("train", "heldout")
    }


def test_no_question_is_in_both_files_of_helpful_pairs() -> None:
    first = [
        {unit.prompt[0].text for unit in units(f"helpful-pairs-{side}", "hh", "pair") if isinstance(unit, Pair)}
        for side in ("train", "heldout")
    ]
    assert not first[0] & first[1]

"""The small sets for assistants that the project ships: what they promise, and held-out data apart from training."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
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
        ("sums-demonstrations", "gsm8k", "conversation", 9009),
        ("sums-train", "gsm8k", "prompt", 9009),
        ("sums-heldout", "gsm8k", "prompt", 991),
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
            a, b = map(int, re.findall(r"\d+", record.get("question", record.get("prompt"))))
            found.add(frozenset((a, b)))
            assert record.get("answer", record.get("chosen")).endswith(f"\n#### {a + b}")
            assert not record.get("rejected", "").endswith(f"#### {a + b}")
    assert not sides["train"] & sides["heldout"]
    assert len(sides["train"] | sides["heldout"]) == 5050


def test_the_demonstrations_forget_two_of_three_carries_and_make_no_other_mistake() -> None:
    forgotten = carries = 0
    for right, shown in zip(records("sums-train"), records("sums-demonstrations"), strict=True):
        a, b = map(int, re.findall(r"\d+", shown["question"]))
        assert shown["id"] == right["id"] and shown["question"] == right["question"]
        if a % 10 + b % 10 < 10:
            assert shown["answer"] == right["answer"]
        else:
            carries += 1
            forgotten += shown["answer"].endswith(f"#### {a + b - 10}")
            assert shown["answer"].endswith((f"#### {a + b - 10}", f"#### {a + b}"))
    assert 0.64 < forgotten / carries < 0.69


def test_the_script_makes_the_files_that_are_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "sums", raising=False)
    import sums

    made = sums.every_file()
    assert {name: rows[:50] for name, rows in made.items()} == {name: records(name)[:50] for name in made}
    assert {name: len(rows) for name, rows in made.items()} == {name: len(records(name)) for name in made}


def test_no_question_is_in_both_files_of_helpful_pairs() -> None:
    first = [
        {unit.prompt[0].text for unit in units(f"helpful-pairs-{side}", "hh", "pair") if isinstance(unit, Pair)}
        for side in ("train", "heldout")
    ]
    assert not first[0] & first[1]


def test_functions_have_two_labels_and_no_file_is_on_both_sides() -> None:
    train, heldout = records("functions-train"), records("functions-heldout")
    assert (len(train), len(heldout)) == (4060, 293)
    assert len({row["id"] for row in [*train, *heldout]}) == 4353
    files = [Counter(row["id"].rpartition(":")[0] for row in side) for side in (train, heldout)]
    assert not files[0].keys() & files[1].keys()
    assert len(files[1]) == 70 and max(files[1].values()) == 10
    seen = {re.split("\n(?:Summary|Topic): ", row["topic_first"])[0] for row in train}
    assert seen == {re.split("\n(?:Summary|Topic): ", row["summary_first"])[0] for row in train}
    assert {row["topic_first"].rpartition("\n")[2].partition(": ")[0] for row in train} == {"Summary"}
    assert {row["summary_first"].rpartition("\nTopic: ")[2] for row in train} == {"biology", "library", "tests"}
    for row in heldout:
        assert f"Text: {row['source']}" not in seen and row["summary"] not in row["source"]
        assert row["topic"] in ("biology", "library", "tests") and row["summary"].endswith(".")


def test_functions_of_one_file_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import multi_task

    rows = [{"id": f"{file}:{n}", "file": str(file)} for file in range(40) for n in range(1 + file % 30)]
    learnt, held_out = multi_task.halves(rows)
    files = [{row["file"] for row in side} for side in (learnt, held_out)]
    assert not files[0] & files[1] and len(files[0] | files[1]) == 40
    assert 0.5 < len(held_out) / (len(rows) // 5) <= 1
    assert max(Counter(row["file"] for row in held_out).values()) == 10


def test_news_and_dialogues_become_texts_with_two_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import multi_task

    news = tmp_path / "news.csv"
    news.write_text("".join(f'"{1 + n % 4}","Title {n}","A long\\text of {n}."\n' for n in range(20)))
    multi_task.make("ag-news", news, tmp_path / "news")
    task = (tmp_path / "news" / "topic.yaml").read_text()
    assert 'doc_to_choice: ["Business", "Science", "Sports", "World"]' in task and "chance: 1/4" in task
    content = zstandard.ZstdDecompressor().decompress((tmp_path / "news" / "train.jsonl.zst").read_bytes())
    assert json.loads(content.splitlines()[0]) == {
        "id": "2",
        "with_summary": "Text: A long text of 1.\nSummary: Title 1",
        "with_topic": "Text: A long text of 1.\nTopic: Sports",
    }
    content = zstandard.ZstdDecompressor().decompress((tmp_path / "news" / "both.jsonl.zst").read_bytes())
    assert json.loads(content.splitlines()[0]) == {
        "id": "2",
        "summary_first": "Text: A long text of 1.\nSummary: Title 1\nTopic: Sports",
        "topic_first": "Text: A long text of 1.\nTopic: Sports\nSummary: Title 1",
    }
    dialogue = {"fname": "d", "dialogue": "#A#: Hi.\n#B#: Hi.", "summary": "They meet.", "topic": "greeting"}
    said = tmp_path / "said.jsonl"
    said.write_text("".join(json.dumps({**dialogue, "fname": f"d{n}", "topic": f"t{n}"}) + "\n" for n in range(15)))
    multi_task.make("dialogsum", said, tmp_path / "said")
    assert not (tmp_path / "said" / "topic.yaml").exists(), "topics in words are no choice"


def test_the_published_figures_of_xsum_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import xsum_lead

    summary = "f-score >> ROUGE(1/2/3/L/SU4): 16.30/1.60/0.26/11.95/3.13\nprecision >> ROUGE(1/2/3/L/SU4): 1/1/1/1/1\n"
    for name, text in zip(xsum_lead.FILES, ("it rains .\n" * 3, "it rains .\nno\nno\n", summary), strict=True):
        (tmp_path / name).write_text(text)
    rows = xsum_lead.measure(xsum_lead.read(tmp_path), None)
    assert rows[0]["value"] == pytest.approx(100 / 3) and rows[2]["published"] == 11.95
    assert "| ROUGE-1 F1 | no | 33.33" in xsum_lead.table(rows)
    with pytest.raises(ValueError, match=r"has no gold-test-sentences\.txt"):
        xsum_lead.read(ROOT / "configs" / "tasks")

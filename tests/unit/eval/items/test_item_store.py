"""Items come back as they were stored, and a damaged file says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.items.item import MOST_CHARACTERS, Item, beginning, ending, hash_of, shared_seconds
from eval.items.store import items_file, parts_with_items, read_file, read_items, write_items

ITEMS = [
    Item(
        "0",
        hash_of("2 + 2 =", "4"),
        "2 + 2 =",
        "sums",
        reference="4",
        answer="5",
        choices=("4", "5"),
        log_likelihoods=(-1.5, -0.25),
        bytes=1,
        tokens=1,
        seconds=0.5,
        measures={"acc": (0.0, 1.0), "exact_match/strict-match": (0.5, 1.0)},
        tags=("clean",),
        notes={"finish": "stop"},
    ),
    Item("1", hash_of("a", "b"), "a\x00\ud800", "words", statistics={"bleu": (1.0, 2.0)}, tags=("touched",)),
    Item("2", hash_of("c"), "c", "sums", measures={"acc": (1.0, 1.0)}, tags=("clean",)),
    Item(
        "3",
        hash_of("d"),
        "d",
        "texts",
        measures={"bits_per_byte": (6.0, 3.0)},
        units={"bits_per_byte": (4.0, 2.0, 2.0, 1.0)},
    ),
]
STORED = [ITEMS[0], Item(**{**vars(ITEMS[1]), "asked": "a\x00?"}), *ITEMS[2:]]


def stored(run: Path, part: str = "benchmark/all") -> None:
    items = [Item(**{**vars(item), "asked": beginning(item.asked)}) for item in ITEMS]
    write_items(run / "scores", part, "f" * 32, items)


def test_items_come_back_as_they_were(tmp_path: Path) -> None:
    stored(tmp_path)
    table = read_items(tmp_path, "benchmark/all")
    assert list(table.items()) == STORED and len(table) == 4
    assert (table.part, table.fingerprint, table.subjects) == ("benchmark/all", "f" * 32, ["sums", "words", "texts"])
    assert table.metrics() == ["acc", "exact_match/strict-match", "bits_per_byte"]
    assert table.metrics("sums") == ["acc", "exact_match/strict-match"] and table.metrics("words") == []
    assert table.corpus_metrics() == ["bleu"] == table.corpus_metrics("words")


def test_what_a_score_is_made_of(tmp_path: Path) -> None:
    stored(tmp_path)
    table = read_items(tmp_path, "benchmark/all")
    right = table.measure("acc", "sums")
    assert right is not None and right.numerators.tolist() == [0, 1] and right.denominators.tolist() == [1, 1]
    assert right.hashes == [ITEMS[0].hash, ITEMS[2].hash] and right.ids == ["sums/0", "sums/2"]
    assert table.measure("acc", "words") is None and table.measure("acc_norm") is None
    assert table.measure("acc", tag="touched") is None
    stretches = table.measure("bits_per_byte")
    assert stretches is not None and stretches.ids == ["texts/3#0", "texts/3#1"]
    assert stretches.numerators.tolist() == [4, 2] and stretches.denominators.tolist() == [2, 1]
    bleu = table.statistics("bleu")
    assert bleu is not None and bleu[0] == ["words/1"] and bleu[2].tolist() == [[1, 2]]


def test_without_items_nothing_is_left(tmp_path: Path) -> None:
    stored(tmp_path)
    assert write_items(tmp_path / "scores", "benchmark/all", "g", []) is None
    assert parts_with_items(tmp_path) == [] and list((tmp_path / "scores").iterdir()) == []


def test_a_file_that_is_not_what_was_written_does_not_replace_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    stored(tmp_path)
    before = items_file(tmp_path / "scores", "benchmark/all").read_bytes()
    write = pq.write_table
    monkeypatch.setattr(pq, "write_table", lambda table, file, **settings: write(table.slice(1), file, **settings))
    with pytest.raises(OSError, match="is not what was written; check the disk"):
        write_items(tmp_path / "scores", "benchmark/all", "g", STORED)
    assert [file.name[:14] for file in (tmp_path / "scores").iterdir()] == ["benchmark-all-"]
    assert items_file(tmp_path / "scores", "benchmark/all").read_bytes() == before


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no items: score the run with `replica eval"):
        read_items(tmp_path, "benchmark/all")
    stored(tmp_path)
    stored(tmp_path, "perplexity/heldout")
    with pytest.raises(ValueError, match=r"no items of `benchmark/al`; it has those of benchmark/all$"):
        read_items(tmp_path, "benchmark/al")
    with pytest.raises(ValueError, match=r"it has those of benchmark/all, perplexity/heldout$"):
        read_items(tmp_path, "zzz")
    file = items_file(tmp_path / "scores", "benchmark/all")
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"cannot be read .*; delete it and score the run again: replica eval"):
        read_items(tmp_path, "benchmark/all")
    assert parts_with_items(tmp_path) == ["perplexity/heldout"]
    with pytest.raises(ValueError, match="cannot be read"):
        read_file(file)


def test_a_file_of_another_program_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = items_file(tmp_path / "scores", "a")
    file.parent.mkdir()
    pq.write_table(pa.table({"id": ["1"]}), file)
    with pytest.raises(ValueError, match="holds no items that this version reads"):
        read_items(tmp_path, "a")


def test_texts_are_bounded_and_hashes_are_not() -> None:
    long = "a" * MOST_CHARACTERS
    assert beginning(long) == long == ending(long)
    assert beginning(long + "b").endswith("a …") and ending("b" + long).startswith("… a")
    assert len(beginning(long + "b")) == len(ending("b" + long)) == MOST_CHARACTERS
    assert hash_of(long + "b") != hash_of(long + "c") and len(hash_of("x")) == 16
    assert hash_of("a", "bc") != hash_of("ab", "c")
    assert shared_seconds(6.0, [1, 2, 3]) == [1, 2, 3] and shared_seconds(6.0, [0, 0]) == [3, 3]

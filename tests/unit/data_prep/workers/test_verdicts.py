"""Verdicts on documents: what the stages after them read, and how they are counted."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.dedup.exact import ExactDeduplication
from data_prep.documents.parts_writer import sorted_hashes
from data_prep.workers.parts import SCHEMA
from data_prep.workers.stage import Stage
from data_prep.workers.verdicts import Part, VerdictWriter, dropped, remaining
from tests.parts.dedup_parts import run_inline


def make_part(directory: Path, name: str, texts: list[str], number: int = 0) -> Part:
    """A part of the documents as the stage `documents` writes it."""
    sizes = [len(text.encode()) for text in texts]
    columns = [
        [f"{name}:{row}" for row in range(len(texts))], texts, [None] * len(texts), [None] * len(texts),
        [0] * len(texts), [None] * len(texts), sizes,
    ]  # fmt: skip
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, SCHEMA, strict=True)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), directory / f"{name}.parquet", row_group_size=3)
    digests = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
    np.save(directory / f"{name}.hashes.npy", sorted_hashes(digests, sizes))
    return Part(name, number, "s", directory, (), len(texts), sum(sizes))


def test_later_stages_see_what_earlier_ones_left(tmp_path: Path) -> None:
    part = make_part(tmp_path, "p", ["zero", "häß one one", "two", "three", "four"])
    first, second = Stage(tmp_path / "first", {}), Stage(tmp_path / "second", {})
    for stage in (first, second):
        stage.begin()
    writer = VerdictWriter(part)
    writer.drop(3, "gone", 5, "like s")
    writer.cut(1, "again", [(0, 5), (9, 13)])
    writer.mark(0, "seen", 4)
    writer.commit(first)
    assert (first.unit("p") or {})["counts"] == {"gone": [1, 5], "again": [0, 9]}
    assert (first.unit("p") or {})["marks"] == {"seen": [1, 4]}
    after = part.after(first.directory)
    expected = [(0, "zero", 4), (1, " one", 4), (2, "two", 3), (4, "four", 4)]
    assert [(row, fields["text"], fields["bytes"]) for row, fields in remaining(after, ["text", "bytes"])] == expected
    writer = VerdictWriter(after)
    writer.drop(1, "rest", 4)
    writer.cut(4, "again", np.array([[1, 3]]))
    writer.commit(second)
    last = after.after(second.directory)
    assert [fields["text"] for _, fields in remaining(last, ["text"])] == ["zero", "two", "fr"]
    assert [fields["bytes"] for _, fields in remaining(last, ["bytes"])] == [4, 3, 2]
    assert list(dropped(last)) == [("first/gone", "three"), ("second/rest", " one")]


def test_the_first_of_equal_documents_stays(tmp_path: Path) -> None:
    chance = random.Random(2)
    texts = {f"p{number}": [f"text {chance.randrange(60)}" for _ in range(40)] for number in range(4)}
    parts = [make_part(tmp_path, name, own, number) for number, (name, own) in enumerate(texts.items())]
    stage = Stage(tmp_path / "exact", {})
    stage.begin()
    ExactDeduplication().make(stage, parts, run_inline(stage))
    seen: set[str] = set()
    counted = 0
    for part, own in zip(parts, texts.values(), strict=True):
        expected = [text for row, text in enumerate(own) if text not in seen and text not in own[:row]]
        left = [fields["text"] for _, fields in remaining(part.after(stage.directory), ["text"])]
        assert left == expected
        seen |= set(own)
        counted += sum(entry[0] for entry in (stage.unit(part.name) or {})["counts"].values())
    assert counted == 160 - len(seen)

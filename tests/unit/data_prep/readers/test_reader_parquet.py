"""Parquet: no value of a row ends a run, and no row takes more memory than it may, whatever the file says of itself."""

from __future__ import annotations

import gzip
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.schema.data import Limits
from data_prep.readers import parquet as reader
from data_prep.readers import read_records, row_size
from tests.parts.reading import read, reasons, source, texts


def raw_strings(*values: bytes, kind: Any = None) -> Any:
    """Strings that nobody looked at: they need not be UTF-8."""
    ends = np.cumsum([0, *map(len, values)]).astype(np.int64 if kind == pa.large_string() else np.int32)
    buffers = [None, pa.py_buffer(ends.tobytes()), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(kind or pa.string(), len(values), buffers)


def repeated(*counts: int, texts: tuple[str, ...] = ("x" * 1_000_000, "s")) -> Any:
    """So many rows of each text, as a dictionary that holds each once."""
    return pa.DictionaryArray.from_arrays(np.repeat(np.arange(len(counts), dtype=np.int32), counts), pa.array(texts))


FAR = 4_000_000  # days: the year 12921
BEYOND: dict[str, Any] = {
    "date": pa.array([0, FAR], pa.date32()),
    "date64": pa.array([0, FAR * 86_400_000], pa.date64()),
    "seconds": pa.array([0, FAR * 86_400], pa.timestamp("s")),
    "zone": pa.array([0, FAR * 86_400_000], pa.timestamp("ms", "Europe/Berlin")),
    "before": pa.array([0, -FAR], pa.date32()),
    "struct": pa.StructArray.from_arrays([pa.array([0, FAR], pa.date32()), pa.array([1, 2])], ["day", "n"]),
    "list": pa.array([[0, 1], [FAR, 0]], pa.list_(pa.date32())),
    "map": pa.array([[("a", 0)], [("a", FAR), ("b", 0)]], pa.map_(pa.string(), pa.date32())),
    "duration": pa.array([0, 2**62], pa.duration("s")),
}


@pytest.mark.parametrize("name", BEYOND)
def test_a_value_that_python_cannot_hold(tmp_path: Path, name: str) -> None:
    pq.write_table(pa.table({"text": ["first", "second"], "other": BEYOND[name], "n": [7, 8]}), tmp_path / "a.parquet")
    (tmp_path / "b.txt").write_text("other file")
    documents, rejected = read(str(tmp_path / "*"))
    assert not rejected
    assert [document.text for document in documents] == ["first", "second", "other file"]
    assert documents[0].metadata["n"] == 7
    assert "other" in documents[0].metadata
    assert documents[1].metadata["n"] == 8
    left = documents[1].metadata.get("other")
    if name == "struct":
        assert left == {"n": 2}
    elif name == "list":
        assert [str(day) for day in left] == ["1970-01-01"]
    elif name == "map":
        assert list(left) == ["b"]
    else:
        assert left is None


BROKEN = (b"good one", b"bad \xff here", b"good two")
STRINGS: dict[str, tuple[Any, str]] = {
    "string": (raw_strings(*BROKEN), "text"),
    "large": (raw_strings(*BROKEN, kind=pa.large_string()), "text"),
    "dictionary": (pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), raw_strings(*BROKEN)), "text"),
    "list": (pa.ListArray.from_arrays(pa.array([0, 1, 2, 3]), raw_strings(*BROKEN)), "text"),
    "struct": (pa.StructArray.from_arrays([raw_strings(*BROKEN)], ["body"]), "text.body"),
    "map": (
        pa.MapArray.from_arrays(pa.array([0, 1, 2, 3]), pa.array(["body"] * 3), raw_strings(*BROKEN)),
        "text.body",
    ),
    "view": (raw_strings(*BROKEN).cast(pa.string_view()), "text"),
}


@pytest.mark.parametrize("name", STRINGS)
def test_a_string_that_is_not_utf8(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    column, field = STRINGS[name]
    pq.write_table(pa.table({"text": column, "n": [1, 2, 3]}), tmp_path / "a.parquet")
    for most in (reader._HELD_BYTES, -1):  # as strings, and as dictionaries
        monkeypatch.setattr(reader, "_HELD_BYTES", most)
        documents, rejected = read(tmp_path / "a.parquet", text_field=field)
        assert [document.text for document in documents] == ["good one", "good two"]
        assert reasons(rejected) == [("invalid_utf8", "a.parquet:1")]
        # In a column, or a column's name for the id, that is not the text.
    pq.write_table(pa.table({"text": ["a", "b", "c"], "id": column}), tmp_path / "b.parquet")
    assert texts(tmp_path / "b.parquet") == ["a", "b", "c"]


def test_sizes_count_all_that_is_in_a_row(tmp_path: Path) -> None:
    assert row_size({"text": "abc", "b": b"de", "none": None}) == 6
    assert row_size({"a": {"b": ["xy", {"c": "z"}]}, "pairs": [("k", "vv")], "n": [1, 2.5]}) == 1 + 3 + 3 + 16
    long = [f"{index} " + "x" * 1000 for index in range(300)]
    columns = {
        "text": pa.array(long),
        "a.text": pa.array([{"text": text} for text in long]),
        "a.b.text": pa.array([{"b": [{"text": text}]} for text in long]),
        "m.key": pa.array([[("key", text)] for text in long], pa.map_(pa.string(), pa.string())),
    }
    for field, column in columns.items():
        pq.write_table(pa.table({field.partition(".")[0]: column}), tmp_path / "f.parquet")
        documents, rejected = read(tmp_path / "f.parquet", text_field=field, max_bytes=10_000)
        assert (len(documents), len(rejected)) == (10, 0), field
        assert {r.reason for r in read(tmp_path / "f.parquet", Limits(record_bytes=1024), text_field=field)[1]} == set()
    pq.write_table(pa.table({"a": [{"text": "x" * 2000}, {"text": "y"}]}), tmp_path / "f.parquet")
    documents, rejected = read(tmp_path / "f.parquet", Limits(record_bytes=1024), text_field="a.text")
    assert ([d.text for d in documents], reasons(rejected)) == (["y"], [("record_too_long", "f.parquet:0")])


def test_maps_and_columns_of_one_name(tmp_path: Path) -> None:
    kind = pa.map_(pa.string(), pa.map_(pa.string(), pa.string()))
    table = pa.table(
        {
            "m": pa.array([[("a", [("b", "deep"), ("c", "more")])], [("a", [("b", "one"), ("b", "two")])], None], kind),
            "numbers": pa.array([[(1, "x")], [], None], pa.map_(pa.int64(), pa.string())),
        }
    )
    pq.write_table(table, tmp_path / "f.parquet")
    documents, rejected = read(tmp_path / "f.parquet", text_field="m.a.b")
    assert [(document.text, document.metadata) for document in documents] == [
        ("deep", {"m": {"a": {"c": "more"}}, "numbers": [[1, "x"]]})
    ]
    assert [item.reason for item in rejected] == ["missing_text", "missing_text"]  # two of one key are no mapping
    columns = [pa.array(["first"]), pa.array(["second"]), pa.array(["third"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["text", "text", ""]), tmp_path / "g.parquet")
    (document,), _ = read(tmp_path / "g.parquet")
    assert (document.text, document.metadata) == ("first", {"text.1": "second", "2": "third"})


def lists(rows: int, each: int) -> Any:
    return pa.ListArray.from_arrays(np.arange(0, rows * each + 1, each, dtype=np.int32), repeated(rows * each, 0))


BOMBS: dict[str, tuple[Callable[[], Any], str, int]] = {
    "rows": (lambda: repeated(150, 0), "text", 150),
    "behind short ones": (lambda: repeated(3000, 100, texts=("s", "x" * 1_000_000)), "text", 3100),
    "struct": (lambda: pa.StructArray.from_arrays([repeated(150, 0)], ["t"]), "text.t", 150),
    "lists": (lambda: lists(30, 5), "text", 30),
    "map": (
        lambda: pa.MapArray.from_arrays(np.arange(31, dtype=np.int32) * 5, pa.array(list("abcde") * 30), repeated(150)),
        "text.a",
        30,
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_rows_that_share_one_long_value(tmp_path: Path, name: str) -> None:
    make, field, rows = BOMBS[name]
    file = tmp_path / "f.parquet"
    pq.write_table(pa.table({"text": make()}), file)
    assert file.stat().st_size < 100_000
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        found = [(record.reason, record.size) for record in read_records(file)]
        python = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
    assert len(found) == rows
    assert {reason for reason, _ in found} == {None}
    assert sum(size for _, size in found) > 100_000_000
    assert python < 24e6
    assert pool.max_memory() < 24e6
    assert len(source(file, text_field=field).text_fields) == 1


def test_a_row_of_gigabytes_is_not_made(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": lists(1, 100_000), "n": [1]}), tmp_path / "f.parquet")  # 100 GB
    assert reasons(read(tmp_path / "f.parquet")[1]) == [("record_too_long", "f.parquet:0")]
    zeros = pa.ListArray.from_arrays(pa.array([0, 3_000_000], pa.int32()), np.zeros(3_000_000, np.int8))
    pq.write_table(pa.table({"text": ["x"], "zeros": zeros}), tmp_path / "g.parquet")
    (rejected,) = read(tmp_path / "g.parquet", Limits(record_bytes=2**20))[1]
    assert (rejected.reason, rejected.where) == ("broken_record", "g.parquet:0")
    assert "3,000,000 values of lists in 1 rows" in rejected.excerpt


def test_in_archives(tmp_path: Path) -> None:
    file = tmp_path / "f.parquet"
    pq.write_table(pa.table({"text": ["a", "b"]}), file)
    packed = tmp_path / "f.parquet.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    for name in ("a.tar", "a.tar.gz"):
        with tarfile.open(tmp_path / name, "w:gz" if "gz" in name else "w") as tape:
            tape.add(file, "x.parquet")
            tape.add(packed, "y.parquet.gz")
            tape.add(file, "z.parquet")
        assert texts(tmp_path / name) == ["a", "b"] * 3
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(file, "x.parquet")
        archive.write(packed, "y.parquet.gz")
    assert texts(tmp_path / "a.zip") == ["a", "b"] * 2

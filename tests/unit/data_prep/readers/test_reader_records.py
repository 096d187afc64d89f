"""Readers: every format and compression, damaged files, bad records, long documents, flat names."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from configs.schema.sources import HubDataset, Source
from data_prep.documents.conversion import read_documents
from data_prep.documents.document import Document, Rejected
from data_prep.sources.unreadable import UnreadableFile

ROWS = [{"id": "x", "text": "one 中文 😀", "url": "http://a"}, {"id": "y", "text": "two\nlines\x07", "lang": "en"}]


def write(path: Path, data: bytes) -> Path:
    """Writes data, compressed as the name says."""
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = zstandard.ZstdCompressor().compress(data[:7]) + zstandard.ZstdCompressor().compress(data[7:])
    path.write_bytes(data)
    return path


def parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    keys = sorted({key for row in rows for key in row})
    pq.write_table(pa.table({key: [row.get(key) for row in rows] for key in keys}), sink)
    return bytes(sink.getvalue().to_pybytes())


def source(path: Path | list[Path], **settings: Any) -> Source:
    paths = [str(item) for item in path] if isinstance(path, list) else str(path)
    return Source(name="s", path=paths, **settings)


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_tables(tmp_path: Path, kind: str, compression: str) -> None:
    data = jsonl(ROWS) if kind == ".jsonl" else parquet_bytes(ROWS)
    documents = list(read_documents(source(write(tmp_path / f"f{kind}{compression}", data))))
    assert [(d.id, d.text, d.url) for d in documents] == [(r["id"], r["text"], r.get("url")) for r in ROWS]
    assert documents[1].metadata.get("lang") == "en"


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_text(tmp_path: Path, compression: str) -> None:
    file = write(tmp_path / f"f.txt{compression}", b"\xef\xbb\xbfone\ntwo\n\nthree\n")
    name = file.name
    read = {
        unit: [(d.id, d.text) for d in read_documents(source(file, text_documents=unit))]
        for unit in ("file", "line", "paragraph")
    }
    assert read["file"] == [(f"{name}:0", "one\ntwo\n\nthree\n")]
    assert read["line"] == [(f"{name}:0", "one"), (f"{name}:1", "two"), (f"{name}:3", "three")]
    assert read["paragraph"] == [(f"{name}:0", "one\ntwo\n"), (f"{name}:1", "three\n")]


def test_hub(tmp_path: Path) -> None:
    file = write(tmp_path / "f.jsonl", jsonl(ROWS))
    hub = Source(name="s", hub=HubDataset(path="json", data_files=[str(file)]))
    assert [d.text for d in read_documents(hub)] == [row["text"] for row in ROWS]
    with pytest.raises(ValueError, match=r"source s: datasets\.load_dataset"):
        list(read_documents(Source(name="s", hub=HubDataset(path="json", split="nowhere", data_files=[str(file)]))))


def test_bad_records_are_kept_out_with_a_reason(tmp_path: Path) -> None:
    lines = [
        b'{"text": "fine"}',
        b'{"text": "cut',
        b'{"body": "x"}',
        b'"just a string"',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b'{"text": 3}',
        b'{"text": NaN}',
        b"",
        b"  ",
    ]
    rejected: list[Rejected] = []
    documents = list(read_documents(source(write(tmp_path / "f.jsonl", b"\n".join(lines))), on_reject=rejected.append))
    assert [d.text for d in documents] == ["fine"]
    assert [(r.reason, r.where) for r in rejected] == [
        ("invalid_json", "f.jsonl:1"),
        ("missing_text", "f.jsonl:2"),
        ("invalid_json", "f.jsonl:3"),
        ("invalid_utf8", "f.jsonl:4"),
        ("invalid_utf8", "f.jsonl:5"),
        ("missing_text", "f.jsonl:6"),
        ("missing_text", "f.jsonl:7"),
    ]


@pytest.mark.parametrize(
    "name", ["f.jsonl.gz", "f.jsonl.zst", "f.txt.zst", "f.parquet", "f.parquet.zst", "f.parquet.gz"]
)
@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
def test_damaged_files(tmp_path: Path, name: str, damage: str) -> None:
    rows = [{"id": str(n), "text": f"text {n * 7919 % 1000} " * 20} for n in range(500)]
    file = write(tmp_path / name, parquet_bytes(rows) if "parquet" in name else jsonl(rows))
    data = file.read_bytes()
    file.write_bytes(
        data[: len(data) * 2 // 3]
        if damage == "truncated"
        else data[:40] + b"\x55" * 300 + data[340:-200] + b"\x55" * 200
    )
    with pytest.raises(UnreadableFile, match=name):
        list(read_documents(source(file)))


@pytest.mark.parametrize("name", ["f.txt", "f.jsonl"])
@pytest.mark.parametrize("text", ["line of text 中文\n" * 400, "没有换行" * 900, "x" * 5000])
def test_long_documents_are_cut_into_parts(tmp_path: Path, name: str, text: str) -> None:
    file = write(tmp_path / name, text.encode() if name == "f.txt" else jsonl([{"id": "d", "text": text}]))
    parts = list(read_documents(source(file), max_document_bytes=1024))
    assert "".join(part.text for part in parts) == text
    assert len(parts) > 4
    base = "f.txt:0" if name == "f.txt" else "d"
    assert [part.id for part in parts] == [f"{base}#{n}" for n in range(len(parts))]
    data = text.encode()
    for part in parts:
        piece = part.text.encode()
        assert len(piece) <= 1024
        assert data[part.offset : part.offset + len(piece)] == piece


def test_names_do_not_depend_on_the_place(tmp_path: Path) -> None:
    ids = []
    for place in ("here", "over/there"):
        directory = tmp_path / place
        (directory / "sub").mkdir(parents=True)
        for name in ("b.txt", "sub/a.txt"):
            write(directory / name, b"text")
        ids.append([d.id for d in read_documents(Source(name="s", path=str(directory / "**" / "*.txt")))])
    assert ids == [["b.txt:0", "sub/a.txt:0"]] * 2


def test_max_documents_and_missing_files(tmp_path: Path) -> None:
    file = write(tmp_path / "f.jsonl", jsonl(ROWS))
    assert len(list(read_documents(source(file, max_documents=1)))) == 1
    with pytest.raises(ValueError, match="no such file"):
        list(read_documents(source(tmp_path / "absent-*.jsonl")))
    with pytest.raises(ValueError, match=r"files end in \.txt"):
        list(read_documents(source(write(tmp_path / "f.pdf", b"%PDF"))))


def test_zst_with_a_long_window(tmp_path: Path) -> None:
    text = b"0123456789abcdef\n" * 1000
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=30, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    file = tmp_path / "f.txt.zst"
    file.write_bytes(compressor.compress(text) + compressor.flush())
    (document,) = read_documents(source(file))
    assert isinstance(document, Document)
    assert document.text == text.decode()

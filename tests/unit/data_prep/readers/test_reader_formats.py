"""Readers: what each format gives, through every compression, in archives and in other encodings."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lz4.frame
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from configs.schema.data import Limits
from data_prep.readers import Reading, read_records
from data_prep.readers.archives import is_wanted
from data_prep.readers.fields import split_front_matter, take_text
from data_prep.sources.places import names_within
from tests.parts.reading import jsonl, read, texts

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:]),
    ".zst": zstandard.compress,
    ".lz4": lambda data: lz4.frame.compress(data[:9]) + lz4.frame.compress(data[9:]),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def test_every_format_through_every_compression(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["one", "two"]}), sink)
    contents = {
        "a.jsonl": jsonl([{"text": "one"}, {"text": "two"}]),
        "a.json": b'[{"text": "one"}, {"text": "two"}]',
        "a.csv": b"id,text\n1,one\n2,two\n",
        "a.tsv": b"id\ttext\n1\tone\n2\ttwo\n",
        "a.parquet": sink.getvalue(),
        "a.txt": b"one\ntwo",
        "a.md": b"one\ntwo",
        "a.fasta": b">x\none\n>y\ntwo\n",
    }
    for name, data in contents.items():
        for ending, pack in PACK.items():
            file = tmp_path / f"{name}{ending}"
            file.write_bytes(pack(data))
            settings = {"text_documents": "line"} if name == "a.txt" else {}
            assert texts(file, **settings) == (["one\ntwo"] if name == "a.md" else ["one", "two"]), file
    twice = tmp_path / "b.txt.xz.gz"
    twice.write_bytes(gzip.compress(lzma.compress(b"deep")))
    assert texts(twice) == ["deep"]


def test_a_file_whose_name_does_not_tell_how_it_is_packed(tmp_path: Path) -> None:
    for ending in (".gz", ".zst", ".lz4", ".xz"):
        (tmp_path / "part-00000").write_bytes(PACK[ending](b"text that was packed"))
        assert texts(tmp_path / "part-00000", format="text") == ["text that was packed"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_json_items_wherever_chunks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("data_prep.readers.json_items.CHUNK_BYTES", size)
    items: list[Any] = [
        {"text": 'quotes \\" \\\\ and [brackets], {braces}', "more": [1, [2, {"x": "]"}], {}]},
        {"text": "\\"},
        {"text": "中文 😀 \u2028", "n": None},
        {"text": ""},
    ]
    file = tmp_path / "f.json"
    for text in (json.dumps(items), json.dumps(items, indent=2, ensure_ascii=False), "\n".join(map(json.dumps, items))):
        file.write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert texts(file) == [item["text"] for item in items]
    file.write_text(json.dumps({"text": "one object", "list": items}))
    assert texts(file) == ["one object"]
    file.write_text('["a", 2, {"text": "ok"}, [{"text": "nested"}]]')
    documents, rejected = read(file)
    assert [document.text for document in documents] == ["ok"]
    assert [item.reason for item in rejected] == ["invalid_json"] * 3


def test_csv(tmp_path: Path) -> None:
    file = tmp_path / "f.csv"
    file.write_text('id;text;n\na;"two\nlines; ""quoted""";1\n\nb;plain;2\n')
    documents, rejected = read(file)
    assert [(d.id, d.text, d.metadata) for d in documents] == [
        ("a", 'two\nlines; "quoted"', {"n": "1"}),
        ("b", "plain", {"n": "2"}),
    ]
    assert not rejected
    file.write_text('"3","A title","Some text"\n"1","Another title","More text"\n')
    assert texts(file, text_field=["1", "2"]) == ["A title\n\nSome text", "Another title\n\nMore text"]
    assert texts(file, text_field="2", header=False) == ["Some text", "More text"]
    assert texts(file, text_field="Some text", header=True) == ["More text"]
    file.write_text(",text\n0,first\n1,second\n")
    assert texts(file) == ["first", "second"]
    tabs = tmp_path / "f.tsv"
    tabs.write_text('id\ttext\n1\t5" of rain\n2\tmore\n')
    assert texts(tabs) == ['5" of rain', "more"]


def test_fields() -> None:
    def take(fields: list[str]) -> tuple[str | None, dict[str, Any]]:
        row: dict[str, Any] = {
            "title": "T",
            "a.b": "dotted name",
            "a": {"b": "path", "c": [{"d": "x"}, {"d": ["y", "z"]}, {"e": 1}]},
            "lines": ["p", "q"],
            "empty": "",
            "number": 3,
            "bytes": b"\xe4\xb8\xad",
        }
        return take_text(row, fields), row

    assert take(["title"])[0] == "T"
    assert "title" not in take(["title"])[1]
    assert take(["a.b"])[0] == "dotted name"
    assert take(["a.c.d"])[0] == "x\ny\nz"
    assert take(["a.c.d"])[1]["a"]["c"] == [{}, {}, {"e": 1}]
    assert take(["title", "absent", "empty", "lines"])[0] == "T\n\np\nq"
    assert take(["bytes"])[0] == "中"
    assert take(["empty"])[0] == ""
    for absent in ("number", "absent", "a", "a.c.e", "title.x"):
        assert take([absent])[0] is None
    assert take(["*"]) == ("T\ndotted name\npath\nx\ny\nz\np\nq\n", {"number": 3, "bytes": b"\xe4\xb8\xad"})


def test_markdown_front_matter(tmp_path: Path) -> None:
    file = tmp_path / "f.md"
    file.write_text("---\ntitle: A page\ntags: [a, b]\ndate: 2024-01-02\nnested: {x: 1}\n---\n# Head\n\n---\nrest\n")
    (document,), _ = read(file)
    assert document.text == "# Head\n\n---\nrest\n"
    assert document.metadata == {"title": "A page", "tags": ["a", "b"], "date": "2024-01-02"}
    assert document.read_bytes == file.stat().st_size
    for text in ("---\nnot: [closed\n---\nx", "---\njust words\n---\nx", "--- \ntext without an end", "# plain"):
        assert split_front_matter(text) == ({}, text)


def test_markup_goes_through_extraction(tmp_path: Path) -> None:
    page = "<html><head><title>T</title></head><body><p>A paragraph of the page.</p></body></html>"
    (tmp_path / "f.html").write_text(page)
    (document,), _ = read(tmp_path / "f.html")
    assert "A paragraph of the page." in document.text
    assert "<p>" not in document.text
    assert document.read_bytes == len(page)
    assert texts(tmp_path / "f.html", markup="none") == [page]
    (tmp_path / "f.jsonl").write_bytes(jsonl([{"text": "<p>in a <b>field</b></p>"}]))
    assert texts(tmp_path / "f.jsonl") == ["<p>in a <b>field</b></p>"]
    assert texts(tmp_path / "f.jsonl", markup="html") == ["in a field"]


def test_other_encodings(tmp_path: Path) -> None:
    file = tmp_path / "f.txt"
    chinese = "在很久以前，有一个小村庄，人们过着平静的生活。\n每天早晨，太阳从东方升起。\n"
    german = "Die Straße über den Fluß war schön, aber die Männer gingen müde nach Hause.\n"
    for text, encoding in ((chinese, "gb18030"), (chinese, "utf-16"), (german, "latin-1"), (german, "utf-16-be")):
        mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
        file.write_bytes(mark + text.encode(encoding))
        assert texts(file) == [text], encoding
        assert texts(file, text_documents="line") == text.splitlines(), encoding
    # A text whose other signs come late, as in a book after its English preface.
    late = "plain line\n" * 8000 + german
    file.write_bytes(late.encode("latin-1"))
    assert texts(file) == [late]
    rows = tmp_path / "f.jsonl"
    rows.write_bytes('{"text": "中文"}\n{"text": "b"}\n'.encode("utf-16"))
    assert texts(rows) == ["中文", "b"]
    table = tmp_path / "f.csv"
    table.write_bytes(f"id,text\n1,{chinese.splitlines()[0]}\n2,另一行文字在这里\n".encode("gb18030"))
    assert texts(table) == [chinese.splitlines()[0], "另一行文字在这里"]


def tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


MEMBERS = {
    "a/one.txt": b"first",
    "a/rows.jsonl.gz": gzip.compress(jsonl([{"text": "second"}, {"id": "own", "text": "third"}])),
    "b/seq.fa": b">s1 what it is\nAC\nGT\n",
    "b/read.me": b"not read",
}


def test_archives(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "f.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in MEMBERS.items():
            archive.writestr(name, data)
    (tmp_path / "g.zip.gz").write_bytes(gzip.compress((tmp_path / "f.zip").read_bytes()))
    tar(tmp_path / "f.tar", MEMBERS)
    tar(tmp_path / "f.tar.gz", MEMBERS, "w:gz")
    (tmp_path / "f.tgz").write_bytes((tmp_path / "f.tar.gz").read_bytes())
    for name in ("f.zip", "g.zip.gz", "f.tar", "f.tar.gz", "f.tgz"):
        documents, rejected = read(tmp_path / name)
        assert [(d.id, d.text) for d in documents] == [
            (f"{name}:a/one.txt", "first"),
            (f"{name}:a/rows.jsonl.gz:0", "second"),
            ("own", "third"),
            ("s1", "ACGT"),
        ], name
        assert documents[3].metadata == {"description": "what it is"}
        assert [(r.reason, r.where) for r in rejected] == [("unknown_format", f"{name}:b/read.me")]
        assert texts(tmp_path / name, members="a/*.txt") == ["first"]
        assert texts(tmp_path / name, members="**/read.me", format="text") == ["not read"]
        assert [r.position for r in read_records(tmp_path / name)] == [0, 1, 2, 3, 4]
    assert [is_wanted("x/y/z.txt", glob) for glob in ("**", "**/*.txt", "x/**", "*.txt", "y/**", "x/*/z.txt")] == [
        True, True, True, True, False, True,
    ]  # fmt: skip


def test_fasta_and_long_sequences(tmp_path: Path) -> None:
    file = tmp_path / "f.fa.gz"
    file.write_bytes(gzip.compress(b">chr1 a genome\r\n" + b"ACGTN\r\n" * 1000 + b"\n>p\nMK*-.\n"))
    documents, rejected = read(file, part_bytes=2048)
    assert not rejected
    assert "".join(d.text for d in documents[:-1]) == "ACGTN" * 1000
    assert [d.id for d in documents] == ["chr1#0", "chr1#1", "chr1#2", "p"]
    assert documents[-1].text == "MK*-."


def test_white_space_in_sequences(tmp_path: Path) -> None:
    file = tmp_path / "f.fasta"
    file.write_bytes(b">one\ta title\nACGTACGTAC GGGTTTACGT\n  ACGT\t\r\n\n>two  blocks \n GG \x0bGG\tAA\n>three\n\t\n")
    documents, rejected = read(file)
    assert [(d.id, d.text) for d in documents] == [("one", "ACGTACGTACGGGTTTACGTACGT"), ("two", "GGGGAA")]
    assert [d.metadata for d in documents] == [{"description": "a title"}, {"description": "blocks"}]
    assert [r.reason for r in rejected] == ["broken_record"]
    quality = tmp_path / "f.fastq"  # where Biopython refuses it: blanks are no letters, and qualities count them
    quality.write_bytes(b"@one\nACGT ACGT\n+\n!!!!!!!!!\n@two\nAC\n+\n!!\n")
    documents, rejected = read(quality)
    assert [(d.id, d.text) for d in documents] == [("two", "AC")]
    assert [r.reason for r in rejected] == ["broken_record"]


def test_parts_of_a_page_add_up(tmp_path: Path) -> None:
    page = "<html><body>" + "".join(f"<p>Paragraph {n} of a long page.</p>" for n in range(400)) + "</body></html>"
    (tmp_path / "f.html").write_text(page)
    documents, _ = read(tmp_path / "f.html", part_bytes=1024)
    assert len(documents) > 4
    assert sum(document.read_bytes for document in documents) == len(page)


def test_parquet_of_odd_columns(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", None], "lines": [["x", "y"], None], "data": [b"raw", b"\xff"], "n": [1, 2]})
    pq.write_table(table, tmp_path / "f.parquet")
    assert [d.text for d in read(tmp_path / "f.parquet")[0]] == ["a"]
    assert [d.text for d in read(tmp_path / "f.parquet", text_field="lines")[0]] == ["x\ny"]
    documents, rejected = read(tmp_path / "f.parquet", text_field="data")
    assert [d.text for d in documents] == ["raw"]
    assert [r.reason for r in rejected] == ["invalid_utf8"]
    assert [r.reason for r in read(tmp_path / "f.parquet", text_field="n")[1]] == ["missing_text"] * 2


def test_settings_of_a_reading_reach_it(tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_bytes(jsonl([{"text": "x" * 3000}, {"text": "short"}]))
    documents, rejected = read(tmp_path / "f.jsonl", Limits(record_bytes=1024))
    assert [d.text for d in documents] == ["short"]
    assert [(r.reason, r.bytes) for r in rejected] == [("record_too_long", 3013)]
    assert [r.reason for r in read_records(tmp_path / "f.jsonl", Reading(record_bytes=1024))] == [
        "record_too_long", None,
    ]  # fmt: skip
    assert names_within([tmp_path / "x" / "a", tmp_path / "y" / "a"]) == ["x/a", "y/a"]

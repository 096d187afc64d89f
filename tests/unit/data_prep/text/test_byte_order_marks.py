"""Byte order marks are no text, wherever a file, a record or a line begins."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from data_prep.text.charset import without_marks
from tests.parts.reading import jsonl, read, texts
from tests.unit.data_prep.readers.test_reader_warc import answer, warc

MARK = b"\xef\xbb\xbf"
# A file's name, its bytes with `~` for each mark, and what is read of it.
FILES = {
    "a.txt": (b"~one\n~two\n", ["one\ntwo\n"]),
    "a.md": (b"~---\ntitle: Foo\n---\none", ["one"]),
    "a.jsonl": (b'~{"text": "~one"}\n~{"text": "two"}\n', ["one", "two"]),
    "a.json": (b'~[{"text": "one"}]~[~{"text": "two"}]', ["one", "two"]),
    "a.csv": (b'~id,text\n~1,one\n~"2","two"\n', ["one", "two"]),
    "a.tsv": (b"~id\ttext\n1\t~one\n", ["one"]),
    "a.fasta": (b"~>x\nACGT\n", ["ACGT"]),
    "a.fastq": (b"~@x\nACGT\n+\n!!!!\n", ["ACGT"]),
    "a.html": (b"~<html><body><p>A page of words.</p></body></html>", ["A page of words."]),
    "a.xml": (b'~<?xml version="1.0"?><doc><para>words</para></doc>', ["words"]),
}


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("name", FILES)
def test_no_mark_in_a_text(tmp_path: Path, name: str, ending: str) -> None:
    data, expected = FILES[name]
    data = data.replace(b"~", MARK)
    file = tmp_path / f"{name}{ending}"
    file.write_bytes(gzip.compress(data) if ending else data)
    assert texts(file) == expected


def test_no_mark_in_a_web_record(tmp_path: Path) -> None:
    markdown = answer(MARK + b"---\ntitle: Foo\n---\nMarked", "Content-Type: text/markdown\r\n")
    records = [
        warc("response", answer(MARK + b"Plain page.\n")),
        warc("conversion", MARK + b"WET text.\n", "text/plain"),
        warc("response", markdown),
    ]
    (tmp_path / "a.warc").write_bytes(MARK + b"".join(records))
    assert texts(tmp_path / "a.warc") == ["Plain page.\n", "WET text.\n", "Marked"]


@pytest.mark.parametrize("unit", ["line", "paragraph"])
def test_files_with_marks_put_together(tmp_path: Path, unit: str) -> None:
    parts = [MARK + b"hello\n\n", MARK + b"\n", MARK + b"world\n"]
    (tmp_path / "a.txt.gz").write_bytes(b"".join(map(gzip.compress, parts)))
    (tmp_path / "b.txt").write_bytes("hello\n\n".encode("utf-16") + "world\n".encode("utf-16"))
    for name in ("a.txt.gz", "b.txt"):
        assert [text.strip() for text in texts(tmp_path / name, text_documents=unit)] == ["hello", "world"]
    (tmp_path / "c.jsonl").write_bytes(
        MARK + jsonl([{"text": "a"}]) + MARK + MARK + b"\n" + MARK + jsonl([{"text": "b"}])
    )
    documents, _ = read(tmp_path / "c.jsonl")
    assert [d.text for d in documents] == ["a", "b"]
    (tmp_path / "d.md").write_bytes("---\ntitle: Foo\n---\n# 标题\n".encode("utf-16"))
    (document,), _ = read(tmp_path / "d.md")
    assert (document.text, document.metadata) == ("# 标题\n", {"title": "Foo"})


def test_a_mark_inside_a_line_is_a_character() -> None:
    assert without_marks("\ufeff\ufeffa\ufeffb\r\n\ufeffc\n") == "a\ufeffb\r\nc\n"
    assert without_marks("plain") == "plain"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("before", ["", "ein ö\n"])
def test_one_record_in_utf16_leaves_the_rest_of_a_file_alone(tmp_path: Path, encoding: str, before: str) -> None:
    """It is lost itself; the lines after it are UTF-8 as before."""
    good = [f"Grüße aus Köln, Zeile {number}" for number in range(400)]
    record = ("Ein Satz über Köln in sechzehn Bit\n" * 20).encode(encoding)
    file = tmp_path / "a.txt"
    file.write_bytes(before.encode() + record + "\n".join(["", *good]).encode())
    documents, _ = read(file, text_documents="line")
    assert [document.text for document in documents][-400:] == good


def test_a_file_in_utf16_without_a_mark_is_still_read(tmp_path: Path) -> None:
    lines = [f"Grüße aus Köln, Zeile {number} 中文" for number in range(400)]
    for encoding in ("utf-16-le", "utf-16-be"):
        (tmp_path / "a.txt").write_bytes("\n".join(lines).encode(encoding))
        assert texts(tmp_path / "a.txt", text_documents="line") == lines

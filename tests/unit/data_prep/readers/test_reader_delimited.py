"""Separated values: quotes, headers, separators and line ends as the file has them, whatever its beginning shows."""

from __future__ import annotations

import csv
import gzip
import io
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from configs.schema.data import Limits
from configs.schema.pair_sets import TranslationSet
from data_prep.decontamination.pair_files import read_all_pairs
from data_prep.readers import delimited
from tests.parts.reading import read, reasons, texts


def rows(tmp_path: Path, data: str | bytes, name: str = "f.csv", **settings: Any) -> tuple[list[str], list[str]]:
    """Texts, and why other rows are none."""
    file = tmp_path / name
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    documents, rejected = read(file, **settings)
    return [document.text for document in documents], [item.reason for item in rejected]


# --------------------------------------------------------------------------------------------------------------- quotes
SENTENCES = ["A plain one.", '"Hello," he said.', '"Yes, and then she left', "four", "five", '"Six" it is', '"Seven."']


@pytest.mark.parametrize("before", [0, 3, 5000])
def test_tabs_do_not_quote_where_quotes_are_not_closed(tmp_path: Path, before: int) -> None:
    plain = [f"plain {number} " + "x" * 50 for number in range(before)]  # more than the sample at the beginning
    lines = [f"{number}\t{text}\n" for number, text in enumerate([*plain, *SENTENCES])]
    assert rows(tmp_path, "id\ttext\n" + "".join(lines), "f.tsv") == ([*plain, *SENTENCES], [])
    packed = gzip.compress(("id\ttext\n" + "".join(lines)).encode())
    assert rows(tmp_path, packed, "f.tsv.gz") == ([*plain, *SENTENCES], [])


def test_tabs_quote_where_a_program_did(tmp_path: Path) -> None:
    texts_ = ['with "quotes"', "with\ta tab", "two\nlines", "plain", "a, b", ""]
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC):
        sink = io.StringIO()
        writer = csv.writer(sink, csv.excel_tab, quoting=quoting)
        writer.writerows([["id", "text"], *([number, text] for number, text in enumerate(texts_))])
        assert rows(tmp_path, sink.getvalue(), "f.tsv") == (texts_, [])
    # Excel quotes for a comma too; nothing else tells.
    assert rows(tmp_path, 'id\ttext\r\n1\t"a, b"\r\n2\tc\r\n', "f.tsv") == (["a, b", "c"], [])


def test_other_separators_without_quoting(tmp_path: Path) -> None:
    for separator in "|;":
        table = "".join(f"{number}{separator}{text}\n" for number, text in enumerate(["text", *SENTENCES, *SENTENCES]))
        assert rows(tmp_path, "id" + table[1:]) == (SENTENCES * 2, [])


def test_one_quote_too_many_loses_one_row(tmp_path: Path) -> None:
    good = "".join(f'{number},"quoted, {number}"\n' for number in range(10))
    for bad in ('x,"open\n', 'x,"closed" and more\n', 'x,"open and ""so\n', '"x,y\n', 'x,""open"\n', 'x,"a""\n'):
        for data in (good + bad + good, bad + good, good + bad):
            found, why = rows(tmp_path, "id,text\n" + data)
            assert found == [f"quoted, {number}" for number in range(10)] * (data.count("quoted, 0")), bad
            assert why == ["broken_record"], bad
    # A quote that is never closed takes no other row with it, however many follow.
    many = "".join(f"{number},row {number}\n" for number in range(3000))
    found, why = rows(tmp_path, 'id,text\n1,"first"\n2,"second\n' + many)
    assert (len(found), found[:2], why) == (3001, ["first", "row 0"], ["broken_record"])


def test_rows_over_several_lines(tmp_path: Path) -> None:
    rng = random.Random(5)
    for _ in range(50):
        table = [["text", "n", "more"]]
        table += [["".join(rng.choices('ab ",\n\r;\t|', k=rng.randrange(12))) for _ in range(3)] for _ in range(20)]
        sink = io.StringIO(newline="")
        csv.writer(sink, lineterminator=rng.choice(["\n", "\r\n"]), quoting=csv.QUOTE_ALL).writerows(table)
        assert rows(tmp_path, sink.getvalue(), header=True, text_field="text") == ([row[0] for row in table[1:]], [])


@pytest.mark.slow
def test_a_row_too_long_and_an_open_quote_in_little_memory(tmp_path: Path) -> None:
    data = b"id,text\n1,a\n2," + b"y" * 3_000_000 + b'\n3,b\n4,"open\n' + b"x,y\n" * 500_000
    file = tmp_path / "f.csv"
    file.write_bytes(data)
    tracemalloc.start()
    count = sum(1 for _ in read(file, Limits(record_bytes=2**18), max_documents=5)[0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 3
    assert peak < 12 * 2**20
    _, rejected = read(file, Limits(record_bytes=2**18), max_documents=5)
    assert reasons(rejected) == [("record_too_long", "f.csv:1"), ("broken_record", "f.csv:3")]
    assert rejected[0].bytes == 3_000_003


def test_a_file_cut_within_quotes(tmp_path: Path) -> None:
    data = 'id,text\n1,first\n2,"a text, of\nsome, lines\n' + "and, more\n" * 2000
    packed = gzip.compress(data.encode() + b'end"\n')
    found, why = rows(tmp_path, packed[:-30], "f.csv.gz")
    assert (found, why) == (["first"], ["truncated_file"])


# -------------------------------------------------------------------------------------------------------------- headers
@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("id,text,id\n1,a,2\n3,b,4\n", [{"id.1": "2"}, {"id.1": "4"}]),
        ("id,text,\n1,a,\n3,b,\n", [{"2": ""}, {"2": ""}]),
        ("id,text,\n1,a\n3,b\n", [{}, {}]),
        ("id,text\n1,a,\n3,b,,\n", [{}, {}]),
        ("text,text,text\na,x,y\nb,x,y\n", [{"text.1": "x", "text.2": "y"}] * 2),
        (",,text\n1,2,a\n1,2,b\n", [{"0": "1", "1": "2"}] * 2),
        ("7,text,2024\n1,a,2\n3,b,4\n", [{"7": "1", "2024": "2"}, {"7": "3", "2024": "4"}]),
        ("a very long title of a column that says, text\n1,a\n3,b\n", None),
        (" text ,id\na,1\nb,3\n", [{}, {}]),
        ('"text","id"\n"a","1"\n"b","3"\n', [{}, {}]),
        ("sep=;\nid;text\n1;a\n3;b\n", [{}, {}]),
        ("sep=\t\r\nid\ttext\r\n1\ta\r\n3\tb\r\n", [{}, {}]),
        ('"sep=|"\nid|text\n1|a\n3|b\n', [{}, {}]),
        ("SEP=,\nid,text\n1,a\n3,b\n", [{}, {}]),
    ],
)
def test_a_first_row_with_the_field_that_is_asked_for(
    tmp_path: Path, table: str, expected: list[dict[str, str]] | None
) -> None:
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "f.csv").write_bytes(mark + table.encode())
        documents, rejected = read(tmp_path / "f.csv")
        assert [document.text for document in documents] == ["a", "b"]
        assert not rejected
        if expected is not None:
            assert [document.metadata for document in documents] == expected


def test_fields_by_number_and_by_name(tmp_path: Path) -> None:
    assert rows(tmp_path, "1,first\n2,second\n", text_field="1")[0] == ["first", "second"]
    assert rows(tmp_path, "1,1\n2,second\n", text_field="1")[0] == ["1", "second"]
    assert rows(tmp_path, "id,body,title\n1,a,b\n2,c,d\n", text_field=["title", "body"])[0] == ["b\n\na", "d\n\nc"]
    assert rows(tmp_path, "id,text\n1,a\n", header=False, text_field="1")[0] == ["text", "a"]
    (tmp_path / "p.csv").write_text("source,target,target\n中文,Chinese,x\n")
    assert len(read_all_pairs(TranslationSet(name="p", path=str(tmp_path / "p.csv")))) == 1


# ------------------------------------------------------------------------------------------------------------ line ends
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends(tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = end.join(["id,text,more", "1,first,x", '2,"two\nlines",""', "", '3,"a ""b""",z', "4,last,"])
    for data in (table, table + end, "sep=,\r\n" + table if end != "\r" else "sep=,\r" + table):
        assert rows(tmp_path, data) == (["first", "two\nlines", 'a "b"', "last"], [])
    assert rows(tmp_path, end.join(["id\ttext", "1\ta", "2\tb"]), "f.tsv") == (["a", "b"], [])
    assert rows(tmp_path, end.join(["id,text", "1,é", "2,b"]).encode("utf-16")) == (["é", "b"], [])
    (tmp_path / "f.fasta").write_bytes(end.join([">x t", "AC", "GT", ">y", "A", ""]).encode())
    assert texts(tmp_path / "f.fasta") == ["ACGT", "A"]
    (tmp_path / "f.fastq").write_bytes(end.join(["@x", "AC", "+", "!!", "@y", "A", "+", "!", ""]).encode())
    assert texts(tmp_path / "f.fastq") == ["AC", "A"]
    (tmp_path / "f.jsonl").write_bytes(end.join(['{"text": "a"}', '{"text": "b"}']).encode())
    assert texts(tmp_path / "f.jsonl") == ["a", "b"]
    (tmp_path / "f.txt").write_bytes(end.join(["a", "b", "", "c"]).encode())
    assert texts(tmp_path / "f.txt", text_documents="line") == ["a", "b", "c"]
    assert [text.rstrip() for text in texts(tmp_path / "f.txt", text_documents="paragraph")] == [
        end.join("ab").replace("\r\n" if end == "\r\n" else "\r", end if end != "\r" else "\n"), "c",
    ]  # fmt: skip
    assert texts(tmp_path / "f.txt") == [end.join(["a", "b", "", "c"])]
    for size in (1, 2, 3):
        monkeypatch.setattr(delimited, "CHUNK_BYTES", size)
        assert rows(tmp_path, table) == (["first", "two\nlines", 'a "b"', "last"], [])


def test_a_carriage_return_within_a_line(tmp_path: Path) -> None:
    assert rows(tmp_path, "id,text\n1,a\rb\n2,c\n") == (["a\rb", "c"], [])
    assert rows(tmp_path, 'id,text\n1,"a\r\nb"\n2,c\n') == (["a\r\nb", "c"], [])

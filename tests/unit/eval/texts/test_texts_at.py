"""Documents at paths: every format, ids as a recipe's source gives them, and clear errors."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from configs.schema.sources import Source
from data_prep.documents.conversion import read_documents
from eval.texts.documents import Text, texts_at


@pytest.fixture
def files(tmp_path: Path) -> Path:
    records = [{"id": "one", "text": "First."}, {"text": ""}, {"text": "Third."}]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(record) + "\n" for record in records)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("line 1\nline 2\n")
    return tmp_path


def test_all_files_in_order_without_empty_documents(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = list(texts_at([str(files / "a.jsonl.gz"), str(files / "**" / "*.txt")]))
    assert found == [
        Text("one", "First.", "a.jsonl.gz"),
        Text("a.jsonl.gz:2", "Third.", "a.jsonl.gz"),
        Text("sub/b.txt:0", "line 1\nline 2\n", "sub/b.txt"),
    ]
    assert "empty documents are left out: 1" in capsys.readouterr().err


def test_ids_are_those_of_a_recipes_source(files: Path) -> None:
    paths = [str(files / "a.jsonl.gz"), str(files / "sub" / "b.txt")]
    source = Source(name="any", path=list(paths))
    assert [one.id for one in texts_at(paths)] == [one.id for one in read_documents(source) if one.text]


def test_lines_and_another_field(files: Path) -> None:
    assert [one.text for one in texts_at([str(files / "sub" / "b.txt")], lines=True)] == ["line 1", "line 2"]
    (files / "c.jsonl").write_text('{"body": {"plain": "Deep."}}\n')
    assert [one.text for one in texts_at([str(files / "c.jsonl")], "body.plain")] == ["Deep."]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"other": "b"}\n', ["x.jsonl, record 2,", "missing_text", "text_field"]),
        ("x.jsonl", b'{"text": "a"}\n{"text', ["x.jsonl, record 2,", "invalid_json"]),
        ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9)[:-9], ["x.jsonl.gz", "truncated_file"]),
        ("x.bin", b"a", ["x.bin", "its ending is not known"]),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        list(texts_at([str(tmp_path / name)]))
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.txt: no such file"):
        list(texts_at([str(tmp_path / "none.txt")]))

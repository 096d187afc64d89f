"""Whatever one document or file makes a library raise, it is counted with that document, and the run goes on."""

from __future__ import annotations

import errno
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from configs.common.files import fingerprint, read_json, write_json
from configs.schema.data import Data
from configs.schema.recipe import load
from configs.schema.sources import Source
from data_prep.decontamination.evaluation_sets import read_texts
from data_prep.documents.chain import Chain, Dropped
from data_prep.documents.conversion import read_documents
from data_prep.documents.document import Document
from data_prep.documents.parts_writer import metadata_json
from data_prep.funnel.tally import Tally
from data_prep.readers.fields import split_front_matter
from data_prep.readers.origins import Origin
from data_prep.sources.places import as_pattern, expand
from data_prep.sources.unreadable import UnreadableFile, concerns_one, describe
from data_prep.stages.pipeline import only_one, prepare_inline
from data_prep.workers.time_limit import TooSlow
from tests.parts.reading import jsonl, read, reasons, texts


class PanicException(BaseException):
    """As PyO3 calls a panic of Rust code."""


OF_ONE = [
    KeyError("maybe"), OverflowError("date value out of range"), RecursionError(), LookupError("codec"), TypeError("x"),
    OSError("from a parser"), OSError(errno.EINVAL, "Invalid argument"), PanicException("called unwrap on a None"),
]  # fmt: skip
OF_THE_RUN = [
    KeyboardInterrupt(), SystemExit(143), TooSlow(), MemoryError(), ModuleNotFoundError("no such module"),
    OSError(errno.ENOSPC, "No space left on device"), UnreadableFile("https://example.org/f cannot be read"),
]  # fmt: skip


def raising(error: BaseException) -> Any:
    def function(*_arguments: Any, **_named: Any) -> NoReturn:
        raise error

    return function


@pytest.mark.parametrize("error", OF_ONE, ids=describe)
def test_an_error_of_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    assert concerns_one(error)
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": "good"}, {"text": ["bad"]}, {"text": "fine"}]))
    real = read_documents.__globals__["take_text"]
    monkeypatch.setattr(
        "data_prep.documents.conversion.take_text",
        lambda row, fields: raising(error)() if isinstance(row["text"], list) else real(row, fields),
    )
    documents, rejected = read(tmp_path / "a.jsonl")
    assert [document.text for document in documents] == ["good", "fine"]
    assert reasons(rejected) == [("reader_failed", "a.jsonl:1")]
    assert rejected[0].excerpt == describe(error)
    assert rejected[0].bytes == len(b'{"text": ["bad"]}\n')


@pytest.mark.parametrize("error", OF_THE_RUN, ids=describe)
def test_an_error_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    assert not concerns_one(error)
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": "good"}]))
    monkeypatch.setattr("data_prep.documents.conversion.take_text", raising(error))
    with pytest.raises(type(error)):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("error", OF_ONE, ids=describe)
def test_an_error_of_one_file_or_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.csv", "id,text\n1,lost\n")
        archive.writestr("b.jsonl", '{"text": "member"}\n')
    (tmp_path / "b.csv").write_text("id,text\n1,lost\n")
    (tmp_path / "c.txt").write_text("file")
    monkeypatch.setattr("data_prep.readers.formats.csv_rows", raising(error))
    documents, rejected = read(str(tmp_path / "*"))
    assert [document.text for document in documents] == ["member", "file"]
    assert reasons(rejected) == [("damaged_file", "a.zip:a.csv"), ("damaged_file", "b.csv:0")]
    assert rejected[0].excerpt == describe(error)


@pytest.mark.parametrize("error", OF_ONE, ids=describe)
def test_an_error_of_a_step(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    monkeypatch.setattr("data_prep.documents.chain.normalize", raising(error))
    tally = Tally()
    result = Chain(Data(sources=[Source(name="s", path="x")]), Source(name="s", path="x"), tally)(
        Document("d", "some text", "s", read_bytes=9)
    )
    assert isinstance(result, Dropped)
    assert (result.key, result.detail) == ("normalize/failed", describe(error))
    assert dict(tally.counts) == {"read/read": (1, 9), "normalize/failed": (1, 9)}


@pytest.mark.parametrize("error", OF_THE_RUN, ids=describe)
def test_a_step_that_ends_the_run(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    if isinstance(error, TooSlow):
        return  # has a reason of its own
    monkeypatch.setattr("data_prep.documents.chain.normalize", raising(error))
    chain = Chain(Data(sources=[Source(name="s", path="x")]), Source(name="s", path="x"), Tally())
    with pytest.raises(type(error)):
        chain(Document("d", "some text", "s"))


def test_metadata_that_cannot_be_written() -> None:
    circle: list[Any] = []
    circle.append(circle)
    assert metadata_json({}) is None
    assert metadata_json({"n": 1, "date": Path("x")}) == '{"n": 1, "date": "x"}'
    assert json.loads(metadata_json({"a": 1, "c": circle, "b": [2], (1, 2): 3}) or "") == {"a": 1, "b": [2]}
    assert metadata_json({"c": circle}) is None
    assert metadata_json({"n": 10**5000, "x": "é"}) == '{"x": "\\u00e9"}'


@pytest.mark.parametrize(
    "value",
    ["!!bool maybe", "!!int x", "!!float x", "!!timestamp x", "!!binary é", "2024-13-45", "!!python/object:os.system x",
     "!!set {[a]: b}", "&a [*a]", "{[x]: y}", "0x" + "f" * 9000, "1:" * 3000 + "1", "!!omap [x]", "*gone", "[" * 400],
)  # fmt: skip
def test_front_matter_that_yaml_refuses(tmp_path: Path, value: str) -> None:
    (tmp_path / "a.md").write_text(f"---\ntitle: A\ndraft: {value}\n---\nText of the page.\n")
    (tmp_path / "b.md").write_text("Another page.\n")
    found = texts(str(tmp_path / "*.md"))
    assert len(found) == 2
    assert found[0].endswith("Text of the page.\n")
    assert found[1] == "Another page.\n"


def test_front_matter_with_any_line_ends() -> None:
    for end in ("\n", "\r\n", "\r"):
        text = end.join(("---", "title: A", "---", "Text.", ""))
        assert split_front_matter(text) == ({"title": "A"}, f"Text.{end}")


def test_a_hub_stream_that_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Any:
        yield {"text": "one"}
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    monkeypatch.setattr("data_prep.readers.origins._hub_dataset", lambda _source: rows())
    given = Source(name="s", hub={"path": "owner/name"})
    with pytest.raises(UnreadableFile, match=r"source s: owner/name/train-0 cannot be read behind row 0 \(UnicodeDec"):
        list(Origin(given, "owner/name/train-0").records(1000))


@pytest.mark.parametrize(
    ("name", "data", "found", "advice"),
    [
        ("a.jsonl", '{\n "text": "x"\n}\n', "invalid_json 3 (a.jsonl)", "set the source's `format: json`"),
        (
            "a.csv",
            "A long title of the first column,2\nx,y\n",
            "missing_text 2 (a.csv: no text in `text`",
            "`header: true`",
        ),
        ("a.jsonl", '{"body": "x"}\n', "fields: body", "set its `text_field` to one of these fields"),
        ("a.parquet", "no table", "damaged_file 1 (a.parquet)", "fetch it again, or set its `format`"),
        ("a.txt", "", "nothing", "check its `path`, `format` and `text_field`"),
    ],
)
def test_a_source_of_which_nothing_can_be_read(tmp_path: Path, name: str, data: str, found: str, advice: str) -> None:
    (tmp_path / name).write_text(data)
    recipe = {
        "name": "r",
        "data": {"sources": [{"name": "s", "path": name}], "tokenizer": {"kind": "byte"}, "directory": "out"},
        "model": {"family": "llama", "num_layers": 1, "hidden_size": 16, "num_heads": 1, "context_length": 16},
        "train": {"tokens": 1000, "global_batch_size": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(ValueError, match="source s: no document could be read") as error:
        prepare_inline(load(tmp_path / "recipe.yaml"))
    assert found in str(error.value)
    assert advice in str(error.value)


# ----------------------------------------------------------------------------------------------------- names and places
def test_a_tar_member_whose_name_is_not_utf8(tmp_path: Path) -> None:
    for form in (tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=form, encoding="latin-1") as archive:
            for name in ("café.txt", "dé/b.jsonl", "é.bin", "é/../../x.txt"):
                data = b'{"text": "of JSON"}\n{"text": "again"}\n' if "jsonl" in name else b"of text"
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        documents, rejected = read(tmp_path / "a.tar")
        assert [(document.id, document.text) for document in documents] == [
            (r"a.tar:caf\xe9.txt", "of text"),
            (r"a.tar:d\xe9/b.jsonl:0", "of JSON"),
            (r"a.tar:d\xe9/b.jsonl:1", "again"),
        ]
        assert reasons(rejected) == [
            ("unknown_format", r"a.tar:\xe9.bin"),
            ("unsafe_member", r"a.tar:\xe9/../../x.txt"),
        ]


def test_files_whose_names_are_not_utf8(tmp_path: Path) -> None:
    directory = os.fsencode(tmp_path) + b"/d\xe9"
    os.mkdir(directory)  # noqa: PTH102 (bytes)
    for name, data in ((b"a\xe9.jsonl", b'{"text": "one"}\nbad\n'), (b"b.jsonl", b'{"text": "two"}\n')):
        with open(directory + b"/" + name, "wb") as stream:  # noqa: PTH123 (bytes)
            stream.write(data)
    documents, rejected = read(str(tmp_path / "*" / "*.jsonl"))
    assert [document.id for document in documents] == [r"a\xe9.jsonl:0", "b.jsonl:0"]
    assert reasons(rejected) == [("invalid_json", r"a\xe9.jsonl:1")]
    name = os.fsdecode(directory)
    write_json(tmp_path / "x.json", {name: "café 中文"})
    assert read_json(tmp_path / "x.json") == {name: "café 中文"}
    assert "café 中文" in (tmp_path / "x.json").read_text(encoding="utf-8")
    assert fingerprint({name: 1}) != fingerprint({"d": 1})
    with pytest.raises(ValueError, match=r"d\\xe9: the name of this directory is not UTF-8"), only_one(Path(name)):
        pass


@pytest.mark.parametrize("directory", ["exp [1]", "a*b", "what?", "[!x]", "[[]", "**"])
def test_a_recipe_in_a_directory_whose_name_looks_like_a_pattern(tmp_path: Path, directory: str) -> None:
    base, other = tmp_path / directory, tmp_path / "exp 1"
    for place in (base, other, tmp_path / "aXb", tmp_path / "y"):
        (place / "in").mkdir(parents=True, exist_ok=True)
        (place / "in" / "a.jsonl").write_bytes(jsonl([{"text": place.name}]))
        (place / "in" / "b [2].txt").write_text(place.name)
    recipe = {
        "name": "r",
        "data": {
            "sources": [
                {"name": "glob", "path": "in/*.jsonl"},
                {"name": "deep", "path": "**/*.jsonl"},
                {"name": "list", "path": ["in/a.jsonl", "in/b [[]2].txt", "in/b [2].txt"]},
                {"name": "gone", "path": "in/c.jsonl"},
            ],
            "decontaminate": {"files": ["in/*.txt"]},
            "directory": "out",
        },
        "model": {"family": "llama", "num_layers": 1, "hidden_size": 16, "num_heads": 1, "context_length": 16},
        "train": {"tokens": 1000, "global_batch_size": 1},
        "evaluation": {"perplexity": [{"name": "p", "path": "in/a.jsonl"}]},
    }
    (base / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    loaded = load(base / "recipe.yaml")
    found, deep, listed, gone = loaded.data.sources
    assert texts(found.path or "") == texts(deep.path or "") == [directory]
    assert texts(listed.path or "") == [directory] * 2
    with pytest.raises(ValueError, match=r"c\.jsonl: no such file") as error:
        expand(gone.path or "")
    assert str(error.value).startswith(f"{base / 'in' / 'c.jsonl'}: ")
    assert loaded.data.decontaminate is not None
    assert texts(loaded.data.decontaminate.files) == [directory]
    assert read_texts(loaded.evaluation.perplexity[0], loaded.data.normalize) == [directory]
    assert loaded.data_directory == base / "out"
    (file,) = expand(listed.path or "")[1:]
    assert expand(as_pattern(file)) == [file]

"""Data from a stranger: what tries to write, to run code or to take all memory when it is read."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.common.stores import PROTOCOLS, open_store
from configs.schema.recipe import load
from configs.schema.sources import HubDataset, Source
from configs.schema.train import CheckpointPolicy
from data_prep.readers.origins import origins
from data_prep.sources.places import expand
from data_prep.stages.pipeline import prepare_inline
from pretrain.checkpoint.mirror import Mirror
from tests.parts.reading import read, reasons, texts

BLOCK = tarfile.BLOCKSIZE


# --------------------------------------------------------------------------------------------------------------- places
CHAINS = [
    "filecache::file://{here}/a.txt",
    "simplecache::http://example.org/a.txt",
    "reference://part-0.txt",
    "zip://a.txt::file://{here}/a.zip",
    "ssh://host/a.txt",
    "git://{here}/a.txt",
    "dir::file://{here}",
    "FileCache::file://{here}/a.txt",
    "blockcache::memory://a.txt",
]


@pytest.mark.parametrize("url", CHAINS)
def test_protocols_that_do_more_than_read_are_refused(tmp_path: Path, url: str) -> None:
    url = url.format(here=tmp_path)
    (tmp_path / "a.txt").write_text("a stranger's bytes")
    victim = tmp_path / "victim"
    options = {"filecache": {"cache_storage": str(victim), "same_names": True}}
    for attempt in (
        lambda: read(url, storage_options=options),
        lambda: expand(url.replace("a.txt", "*"), options),
        lambda: Mirror(CheckpointPolicy(mirror=url, mirror_options=options)),
        lambda: origins(Source(name="s", hub=HubDataset(path="text", data_files=[url]))),
        lambda: origins(Source(name="s", hub=HubDataset(path=url))),
    ):
        with pytest.raises(ValueError, match="is not read here, nor are chains"):
            attempt()
    assert not victim.exists()


@pytest.mark.parametrize(
    "options", [{"protocol": "reference", "fo": {}}, {"filecache": {}}, {"target_protocol": "file"}]
)
def test_options_choose_no_other_protocol(tmp_path: Path, options: dict[str, Any]) -> None:
    """fsspec's own `url_to_fs` takes a protocol from the options."""
    (tmp_path / "a.txt").write_text("text")
    url = f"file://{tmp_path}/a.txt"
    if "protocol" in options:
        with pytest.raises(ValueError, match=r"a\.txt: .*correct the URL or the options"):
            texts(url, storage_options=options)
    else:
        assert texts(url, storage_options=options) == ["text"]
        assert type(open_store(url, options)[0]).__name__ == "LocalFileSystem"


def test_colons_in_an_address_are_no_chain() -> None:
    store, path = open_store("http://[::1]:8000/a::b.txt", {})
    assert type(store).__name__ == "HTTPFileSystem" and path == "http://[::1]:8000/a::b.txt"
    assert {"reference", "filecache", "ssh", "sftp", "git", "github", "zip"}.isdisjoint(PROTOCOLS)


# --------------------------------------------------------------------------------------------------------------- .tar
def header(kind: bytes, size: int, name: str = "x", **fields: Any) -> bytes:
    """One block; `size` is what it says, whatever follows."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, max(0, size)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[-BLOCK:])
    if size < 0:
        block[124:136] = b"\xff" * 4 + struct.pack(">q", size)
    for offset, value in fields.get("at", {}).items():
        block[offset : offset + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: str, text: bytes) -> bytes:
    return header(tarfile.REGTYPE, len(text), name) + text.ljust(-(-len(text) // BLOCK) * BLOCK, b"\0")


FIRST = member("first.txt", b"the first text")
END = b"\0" * 2 * BLOCK
BIG = 24 * 2**20


def pax(**records: str) -> bytes:
    lines = b""
    for key, value in records.items():
        body = f" {key}={value}\n".encode()
        length = len(body) + len(str(len(body) + 4))
        lines += str(length).encode() + body
    return lines.ljust(-(-len(lines) // BLOCK) * BLOCK, b"\0")


def long_header(kind: bytes) -> bytes:
    return header(kind, BIG) + b"a" * BIG + member("b.txt", b"second")


def many_globals() -> bytes:
    bodies = [pax(**{f"key{number:03d}": "x" * 500_000}) for number in range(40)]
    return b"".join(header(tarfile.XGLTYPE, len(body)) + body for body in bodies)


def sparse_blocks() -> bytes:
    more = (b"0" * 11 + b"1" + b"0" * 11 + b"1") * 21 + b"\1" + b"\0" * 7
    return header(tarfile.GNUTYPE_SPARSE, 0, at={482: b"\1"}) + more * (BIG // BLOCK) + member("b.txt", b"second")


def sparse_map() -> bytes:
    records = pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s.txt"})
    numbers = b"9999999\n" + b"1\n" * (BIG // 2)
    numbers = numbers.ljust(-(-len(numbers) // BLOCK) * BLOCK, b"\0")
    return header(tarfile.XHDTYPE, len(records)) + records + header(tarfile.REGTYPE, len(numbers), "s.txt") + numbers


TAR_BOMBS: dict[str, Callable[[], bytes]] = {
    "pax": lambda: long_header(tarfile.XHDTYPE),
    "global": lambda: long_header(tarfile.XGLTYPE),
    "long name": lambda: long_header(tarfile.GNUTYPE_LONGNAME),
    "long link": lambda: long_header(tarfile.GNUTYPE_LONGLINK),
    "many globals": many_globals,
    "sparse blocks": sparse_blocks,
    "sparse map": sparse_map,
}


@pytest.mark.parametrize("bomb", TAR_BOMBS)
def test_headers_of_archives_are_not_read_whole(tmp_path: Path, bomb: str) -> None:
    file = tmp_path / "a.tar.gz"
    file.write_bytes(gzip.compress(FIRST + TAR_BOMBS[bomb]() + END, 1))
    tracemalloc.start()
    try:
        documents, rejected = read(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [document.text for document in documents] == ["the first text"]
    assert [item.reason for item in rejected] == ["unsafe_member" if bomb == "sparse map" else "damaged_file"]
    assert peak < 12 * 2**20


@pytest.mark.parametrize(
    "broken",
    [
        b"".join(header(tarfile.GNUTYPE_LONGNAME, 1) + b"n".ljust(BLOCK, b"\0") for _ in range(2000)),
        header(tarfile.XHDTYPE, BLOCK) + (b"9" * 500 + b" size=1\n").ljust(BLOCK, b"\0")[:BLOCK],
        header(tarfile.XHDTYPE, 6 * BLOCK) + (b"9" * 3000 + b" a=1\n").ljust(6 * BLOCK, b"\0"),
        header(tarfile.REGTYPE, -4 * BLOCK, "back.txt"),
        header(tarfile.XHDTYPE, BLOCK) + pax(size="-4096") + member("back.txt", b"again"),
        header(tarfile.XHDTYPE, 12 * BLOCK) + pax(**{"GNU.sparse.map": "9" * 5000}).ljust(12 * BLOCK, b"\0"),
    ],
    ids=["chain", "length", "long length", "negative", "negative in pax", "long number"],
)
def test_broken_headers_of_archives_end_the_archive_alone(tmp_path: Path, broken: bytes) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes(FIRST + broken + member("last.txt", b"the last text") + END)
    documents, rejected = read(file)
    assert documents[0].text == "the first text" and len(documents) <= 2
    assert len(rejected) <= 1 and {item.reason for item in rejected} <= {"damaged_file", "unsafe_member"}


def test_long_names_stay_what_they_are(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    names = ["d" * 90 + "/" + "n" * 90 + f"{number}" * 3 + ".txt" for number in range(3)]
    for format_ in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(file, "w", format=format_, pax_headers={"comment": "for all"}) as archive:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 4
                archive.addfile(info, io.BytesIO(b"text"))
        documents, rejected = read(file)
        assert [document.id for document in documents] == [f"a.tar:{name}:0" for name in names] or [
            document.id for document in documents
        ] == [f"a.tar:{name}" for name in names]
        assert reasons(rejected) == []


# ------------------------------------------------------------------------------------------- archives without an end
def layers(count: int, data: bytes) -> bytes:
    for _ in range(count):
        data = gzip.compress(data, 1)
    return data


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl" + ".gz" * 60])
def test_layers_of_compression_come_to_an_end(tmp_path: Path, name: str) -> None:
    """What unpacks to something packed again, for ever, as a quine does, ends where a reader stops looking."""
    (tmp_path / name).write_bytes(layers(200, b'{"text": "deep"}\n'))
    started = time.process_time()
    documents, rejected = read(tmp_path / name)
    assert documents == [] and rejected
    assert time.process_time() - started < 5


def test_members_with_endless_endings(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    with tarfile.open(file, "w") as archive:
        for name in ("a.txt" + ".gz" * 5000, "last.txt"):
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, io.BytesIO(b"text"))
    documents, rejected = read(file)
    assert [document.text for document in documents][-1] == "text"
    assert len(documents) + len(rejected) == 2


def test_archives_in_archives_are_not_opened(tmp_path: Path) -> None:
    """So a .zip that holds itself is read once."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as packed:
        packed.writestr("a.txt", "inner")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("a.zip", inner.getvalue())
        packed.writestr("b.tar.gz", layers(1, FIRST + END))
        packed.writestr("c.txt", "outer")
    documents, rejected = read(tmp_path / "a.zip")
    assert [document.text for document in documents] == ["outer"]
    assert [item.reason for item in rejected] == ["unknown_format"] * 2


# -------------------------------------------------------------------------------------------------- tasks that run code
def test_decontamination_runs_no_tasks_of_strangers(tmp_path: Path) -> None:
    """lm-eval's YAML names Python functions; a recipe cannot have them run, neither through `data.decontaminate`."""
    mark = tmp_path / "code-ran"
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\ndef go(doc):\n    return ''\n")
    task = "task: evil\ndataset_path: json\ndataset_kwargs: {data_files: {test: a.jsonl}}\ntest_split: test\n"
    (tmp_path / "tasks" / "evil.yaml").write_text(
        task + "output_type: generate_until\ndoc_to_text: !function evil.go\n"
    )
    for place in (tmp_path, tmp_path / "tasks"):
        (place / "a.jsonl").write_text('{"text": "some text of a document"}\n')
    recipe = {
        "name": "case",
        "data": {
            "sources": [{"name": "s", "path": "a.jsonl"}],
            "tokenizer": {"kind": "byte"},
            "validation_fraction": 0,
            "decontaminate": {"evaluation": False, "tasks": ["evil"]},
        },
        "model": {"family": "llama", "num_layers": 1, "hidden_size": 16, "num_heads": 1, "context_length": 16},
        "train": {"tokens": 1000, "global_batch_size": 1},
        "evaluation": {"benchmarks": {"include_path": "tasks"}},
        "out": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match=r"name it on the command line: --trust"):
        prepare_inline(load(tmp_path / "recipe.yaml"))
    assert not mark.exists()

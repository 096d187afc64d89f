"""Readers: bad input is counted with a reason, and all around it is read."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import struct
import tarfile
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import lz4.frame
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from configs.schema.data import Limits
from data_prep.documents.conversion import read_documents
from data_prep.readers import Reading, read_records
from data_prep.readers.streams import Unpacked
from data_prep.sources.places import expand, place_identity
from data_prep.sources.unreadable import UnreadableFile
from tests.parts.reading import jsonl, read, reasons, source

SEQUENCES = Path(__file__).parents[3] / "data" / "sequences"
LINES = [{"text": f"line {n} " + hashlib.shake_128(str(n).encode()).hexdigest(1000)} for n in range(400)]


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".gz", ".zst", ".lz4", ".bz2", ".xz"])
@pytest.mark.parametrize("kind", ["jsonl", "txt", "csv", "json", "tar", "fasta"])
def test_a_truncated_file_gives_what_was_readable(tmp_path: Path, kind: str, ending: str) -> None:
    plain = {
        "jsonl": jsonl(LINES),
        "txt": jsonl(LINES),
        "csv": b"text,n\n" + b"".join(row["text"].encode() + b",1\n" for row in LINES),
        "json": json.dumps(LINES).encode(),
        "fasta": b"".join(b">s\n" + re.sub(rb"[^a-z]", b"", row["text"].encode()) + b"\n" for row in LINES),
    }
    if kind == "tar":
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w") as archive:
            for n, row in enumerate(LINES):
                info = tarfile.TarInfo(f"{n}.txt")
                info.size = len(row["text"])
                archive.addfile(info, io.BytesIO(row["text"].encode()))
        plain["tar"] = sink.getvalue()
    pack = {
        ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor(level=1).compress, ".bz2": bz2.compress,
        ".xz": lzma.compress, ".lz4": lambda data: lz4.frame.compress(data, block_size=4),
    }  # fmt: skip
    data = pack[ending](plain[kind])
    file = tmp_path / f"f.{kind}{ending}"
    file.write_bytes(data[: len(data) * 3 // 4])
    documents, rejected = read(file, text_documents="line")
    (last,) = rejected
    assert last.reason == "truncated_file"
    assert last.where.startswith(file.name)
    if ending not in (".bz2", ".xz"):  # whose blocks are larger than this file
        assert 100 < len(documents) < 400
    file.write_bytes(data)
    assert len(read(file, text_documents="line")[0]) == 400


def test_a_broken_file_among_others(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(jsonl([{"text": name}])))
    (tmp_path / "b.jsonl.gz").write_bytes(b"no gzip data at all")
    (tmp_path / "c2.jsonl.gz").write_bytes(b"\x55" * 20 + bytes(range(32)) * 20)
    (tmp_path / "d.jsonl.gz").write_bytes(b"")
    (tmp_path / "e.parquet").write_bytes(b"PAR1 nothing PAR1")
    (tmp_path / "f.zip").write_bytes(b"PK nothing")
    (tmp_path / "g.tar").write_bytes(b"x" * 2000)
    documents, rejected = read(str(tmp_path / "*"))
    assert [d.text for d in documents] == ["a", "c"]
    assert reasons(rejected) == [
        ("invalid_json", "b.jsonl.gz:0"),  # its bytes are those of a text, whatever it is called
        ("damaged_file", "c2.jsonl.gz:0"),
        ("damaged_file", "e.parquet:0"),
        ("damaged_file", "f.zip:0"),
        ("damaged_file", "g.tar:0"),
    ]
    with pytest.raises(UnreadableFile, match=r"c2\.jsonl\.gz cannot be read to its end \(damaged_file"):
        list(read_documents(source(tmp_path / "c2.jsonl.gz")))


def test_a_broken_row_group_leaves_the_others(tmp_path: Path) -> None:
    file = tmp_path / "f.parquet"
    table = pa.table({"text": [hashlib.sha256(str(n).encode()).hexdigest() for n in range(300)]})
    pq.write_table(table, file, row_group_size=100, use_dictionary=False, write_page_checksum=True, compression="gzip")
    data = bytearray(file.read_bytes())
    start = pq.read_metadata(file).row_group(1).column(0).data_page_offset
    data[start + 200 : start + 400] = b"\x55" * 200
    file.write_bytes(data)
    documents, rejected = read(file)
    assert len(documents) == 200
    assert [r.reason for r in rejected] == ["broken_record"]


def test_bombs(tmp_path: Path) -> None:
    zeros = bytes(12_000_000)
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(zeros))
    (tmp_path / "b.txt.gz.gz").write_bytes(gzip.compress(gzip.compress(zeros)))
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ok.txt", "fine")
        archive.writestr("bomb.txt", zeros)
        archive.writestr("nested.txt.zst", zstandard.compress(zeros * 2))
        archive.writestr("last.txt", "also fine")
    with tarfile.open(tmp_path / "d.tar", "w") as tape:
        for name, data in (("bomb.txt.zst", zstandard.compress(zeros * 20)), ("ok.txt", b"fine")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tape.addfile(info, io.BytesIO(data))
    limits = Limits(expansion=100)
    for name, fine, bombs in (("a.txt.zst", [], 1), ("b.txt.gz.gz", [], 1), ("d.tar", ["fine"], 1)):
        documents, rejected = read(tmp_path / name, limits)
        assert [d.text for d in documents if d.text[:1] != "\0"] == fine
        assert [r.reason for r in rejected] == ["expands_too_much"] * bombs
        assert sum(len(d.text) for d in documents) < 300_000_000
    documents, rejected = read(tmp_path / "c.zip", limits)
    assert [d.text for d in documents if d.text[:1] != "\0"] == ["fine", "also fine"]
    assert [(r.reason, r.where.partition(":")[2]) for r in rejected][:1] == [("expands_too_much", "bomb.txt")]


def test_long_lines_are_streamed_past(tmp_path: Path) -> None:
    line = b'{"text": "' + b"x" * 8_000_000 + b'"}'
    contents = {
        "f.jsonl": b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n',
        "f.json": b'[{"text": "a"},' + line + b',{"text": "b"}]',
        "f.csv": b"text,n\na,1\n" + b"y" * 8_000_000 + b',2\nb,3\n"an open quote' + b"\n" + b"z" * 2**20,
        "f.txt": b"a\n" + b"x" * 8_000_000 + b"\nb\n",
        "f.fasta": b">1\na\n>2\n" + b"A" * 8_000_000 + b"\n>3\nb\n",
        "f.warc": b"".join(
            b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n"
            % (len(text), text)
            for text in (b"a", b"x" * 8_000_000, b"b")
        ),
        "f.html.gz": gzip.compress(b"<p>" * 3_000_000),
    }
    limits = Limits(record_bytes=2**20, expansion=10000)
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
        tracemalloc.start()
        documents, rejected = read(tmp_path / name, limits, text_documents="line")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        unclosed = {"broken_record"} if "csv" in name else set()
        assert {r.reason for r in rejected} == {"record_too_long"} | unclosed, name
        assert [d.text for d in documents] == ([] if "html" in name else ["a", "b"]), name
        assert sum(r.bytes for r in rejected) >= 8_000_000, name
        assert peak < 12 * 2**20, (name, peak)


def test_archives_with_unsafe_members(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "f.tar", "w") as tape:
        for name in ("../up.txt", "/etc/root.txt", "a/../../b.txt", "fine.txt"):
            info = tarfile.TarInfo(name)
            info.size = 2
            tape.addfile(info, io.BytesIO(b"ok"))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("link.txt")
            info.type, info.linkname = kind, "/etc/passwd"
            tape.addfile(info)
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        for name in ("../up.txt", "/etc/root.txt", "c:\\x.txt", "fine.txt"):
            archive.writestr(name, "ok")
        link = zipfile.ZipInfo("link.txt")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    for name, unsafe in (("f.tar", 6), ("f.zip", 4)):
        documents, rejected = read(tmp_path / name)
        assert [d.text for d in documents] == ["ok"]
        assert [r.reason for r in rejected] == ["unsafe_member"] * unsafe


def test_zip_members_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "f.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("secret.txt", "odd.txt", "broken.txt", "inner.zip", "fine.txt"):
            archive.writestr(name, f"the text of {name} " * 20)
    data = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        at = {info.filename: info.header_offset for info in archive.infolist()}

    def directory(name: str) -> int:
        return data.rindex(name.encode()) - 46  # the entry's name follows its fixed part

    data[at["secret.txt"] + 6] |= 1
    data[directory("secret.txt") + 8] |= 1
    struct.pack_into("<H", data, at["odd.txt"] + 8, 9)
    struct.pack_into("<H", data, directory("odd.txt") + 10, 9)
    data[at["broken.txt"] + 30 + len("broken.txt") + 5] ^= 0xFF
    file.write_bytes(data)
    documents, rejected = read(file)
    assert [d.id for d in documents if "fine" in d.id] == ["f.zip:fine.txt"]
    assert reasons(rejected) == [
        ("encrypted_member", "f.zip:secret.txt"),
        ("unknown_format", "f.zip:odd.txt"),
        ("damaged_file", "f.zip:broken.txt"),
        ("unknown_format", "f.zip:inner.zip"),
    ]


def test_a_huge_zip_directory(tmp_path: Path) -> None:
    file = tmp_path / "f.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "x")
    data = bytearray(file.read_bytes())
    struct.pack_into("<L", data, data.rindex(b"PK\5\6") + 12, 2**30)
    file.write_bytes(data)
    (rejected,) = read(file)[1]
    assert rejected.reason == "damaged_file"
    assert "directory of 1,073,741,824 bytes" in rejected.excerpt


def test_a_tar_with_a_damaged_header(tmp_path: Path) -> None:
    file = tmp_path / "f.tar"
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("a.txt", "b.txt", "c.txt"):
            info = tarfile.TarInfo(name)
            info.size = 5
            archive.addfile(info, io.BytesIO(b"hello"))
    whole = file.read_bytes()
    file.write_bytes(whole[:1024] + b"\xaa" * 512 + whole[1536:])
    documents, rejected = read(file)
    assert len(documents) == 1
    assert [r.reason for r in rejected] == ["damaged_file"]
    for cut in (1024, 1030, 1540):
        file.write_bytes(whole[:cut])
        assert [r.reason for r in read(file)[1]] == ["truncated_file"], cut


def test_tables_of_mixed_width_and_kind(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_bytes(b'id,text\n1,fine\n2,too,many\n3\n4,"open quote\n5,lost\n')
    documents, rejected = read(tmp_path / "f.csv")
    assert [d.text for d in documents] == ["fine", "lost"]
    assert reasons(rejected) == [("broken_record", f"f.csv:{row}") for row in (1, 2, 3)]
    (tmp_path / "g.csv").write_bytes("id,text\n0,中文的文字\n1,fine\n".encode() + b"2,\xff\xfe\n3,nul \0 inside\n")
    documents, rejected = read(tmp_path / "g.csv")
    assert [d.text for d in documents] == ["中文的文字", "fine", "nul \0 inside"]
    assert [r.reason for r in rejected] == ["invalid_utf8"]
    rows: list[Any] = [{"text": "a"}, {"body": "b"}, {"text": ["c", "d"]}, {"text": {"x": 1}}, {"text": 5}, [], None]
    (tmp_path / "h.jsonl").write_bytes(
        jsonl(rows) + b'{"text": "nul \\u0000", "x": NaN, "id": 123456789012345678901}\n'
    )
    documents, rejected = read(tmp_path / "h.jsonl")
    assert [d.text for d in documents] == ["a", "c\nd", "nul \0"]
    assert documents[2].id == "123456789012345678901"
    assert [r.reason for r in rejected] == ["missing_text"] * 3 + ["invalid_json"] * 2
    (tmp_path / "i.jsonl").write_bytes(b'{"text": "a", "id": 123456789012345678901}\n' + b"[" * 100_000 + b"\n")
    documents, rejected = read(tmp_path / "i.jsonl")
    assert documents[0].id == "123456789012345678901"
    assert [r.reason for r in rejected] == ["invalid_json"]


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_bytes(hashlib.shake_128(b"x").digest(5000))
    documents, rejected = read(tmp_path / "f.txt")
    assert not documents
    assert [r.reason for r in rejected] == ["invalid_utf8"]
    (tmp_path / "g.txt").write_bytes("中文中文".encode() * 25 + b"\xff\xff\xff" + "中文".encode())
    assert [r.reason for r in read(tmp_path / "g.txt")[1]] == ["invalid_utf8"]
    (tmp_path / "g.txt").write_bytes("中文中文".encode() * 50 + b"\xff\xff\xff" + "中文".encode())
    assert read(tmp_path / "g.txt")[0][0].text.endswith("中文\ufffd\ufffd\ufffd中文")  # 3 of 205
    (tmp_path / "h.txt").write_bytes(b"a nul \0 and an escape \x1b stay\n")
    assert read(tmp_path / "h.txt")[0][0].text == "a nul \0 and an escape \x1b stay\n"


def test_files_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    opened = Path.open

    def refuse(self: Path, *arguments: Any, **named: Any) -> Any:
        if self.name == "b.txt":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", refuse)
    documents, rejected = read(str(tmp_path / "*.txt"))
    assert [d.text for d in documents] == ["a"]
    assert reasons(rejected) == [("unreadable_file", f"{name}.txt:0") for name in ("b", "gone", "loop")]
    assert place_identity(tmp_path / "b.txt") == {"unreadable": "Permission denied"}

    def full(self: Path, *arguments: Any, **named: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left"):
        read(tmp_path / "a.txt")


def test_loops_of_links_end(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "f.txt").write_text("once")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    (tmp_path / "a" / ".hidden").mkdir()
    (tmp_path / "a" / ".hidden" / "g.txt").write_text("not seen")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        files = expand(str(tmp_path / "**" / "*.txt"))
    assert [os.path.relpath(str(file), tmp_path) for file in files] == ["a/b/f.txt"]
    assert {Path(str(item.message).split()[0]).name for item in caught} == {"up", "again"}
    assert [Path(str(file)).name for file in expand(str(tmp_path / "a" / "**"))] == ["f.txt"]


def test_paths_that_match_nothing(tmp_path: Path) -> None:
    (tmp_path / "f.pdf").write_bytes(b"x")
    for pattern, message in (
        ("absent*.txt", "no such file"),
        ("**/absent.txt", "no such file"),
        ("", "is a directory"),
        ("f.pdf", "its ending is not known"),
    ):
        with pytest.raises(ValueError, match=message):
            read(str(tmp_path / pattern))
    with pytest.raises(ValueError, match="nosuch"):
        read("nosuch://place/f.txt")


def test_a_damaged_member_does_not_hide_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    members = [gzip.compress(hashlib.shake_128(bytes([n])).digest(3000)) for n in range(5)]
    broken = bytearray(members[2])
    broken[500:700] = b"\x55" * 200
    for bite in (64, 1000, 1 << 16):
        from data_prep.readers.records import Damage

        damage = Damage()
        data = b"".join([*members[:2], bytes(broken), *members[3:]])
        stream = Unpacked(io.BytesIO(data), ".gz", damage, lambda: 1e9, resume=True)
        stream._bite = bite
        found = io.BufferedReader(stream).read()
        assert found.startswith(b"".join(map(gzip.decompress, members[:2])))
        assert found.endswith(b"".join(map(gzip.decompress, members[3:]))), bite
        assert damage.reason is None


def test_sequences_as_biopython_reads_them() -> None:
    known = json.loads((SEQUENCES / "biopython.json").read_text())
    assert len(known) == 14
    for name, expected in known.items():
        records = list(read_records(SEQUENCES / name, Reading()))
        found = [
            [record.name, hashlib.sha256(record.value).hexdigest()[:16]]
            for record in records
            if isinstance(record.value, bytes)
        ]
        bad = [record.reason for record in records if record.value is None]
        if name == "zero_length.fastq":  # an empty sequence is no document
            expected["records"] = [item for item in expected["records"] if item[1] != hashlib.sha256().hexdigest()[:16]]
            assert bad == ["broken_record"]
        elif expected["error"]:
            assert set(bad) <= {"broken_record", "truncated_file"}, name
            assert bad, name
            found = found[: len(expected["records"])]  # Biopython ends at the error
        else:
            assert not bad, name
        assert found == expected["records"], name

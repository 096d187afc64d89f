"""Compressed files are told by their bytes; what follows a complete stream and is none cuts no record."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import lz4.frame
import pytest
import zstandard

from configs.schema.data import Limits
from data_prep.readers.records import Damage
from data_prep.readers.streams import Unpacked, packing
from tests.parts.reading import jsonl, read, reasons, texts
from tests.unit.data_prep.readers.test_reader_warc import answer, warc

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress, ".zst": zstandard.compress, ".lz4": lz4.frame.compress, ".bz2": bz2.compress,
    ".xz": lzma.compress,
}  # fmt: skip
ROWS = [{"text": "first"}, {"text": "second"}]
LINES = jsonl(ROWS)
SKIPPED = b"\x53\x2a\x4d\x18\x05\0\0\0hello"


# --------------------------------------------------------------------------------------------------- told by the bytes
def test_a_name_that_promises_more_than_there_is(tmp_path: Path) -> None:
    for ending in PACK:
        (tmp_path / f"a.jsonl{ending}").write_bytes(LINES)
        assert texts(tmp_path / f"a.jsonl{ending}") == ["first", "second"]
    (tmp_path / "b.jsonl.gz.xz").write_bytes(gzip.compress(LINES))
    (tmp_path / "c.jsonl.gz").write_bytes('{"text": "中文"}\n'.encode("utf-16"))
    (tmp_path / "d.fasta.gz").write_bytes(b">x\nACGT\n")
    (tmp_path / "e.warc.gz").write_bytes(warc("response", answer(b"a page")))
    with tarfile.open(tmp_path / "f.tar.gz", "w") as tape:
        tape.addfile(tarfile.TarInfo("x.txt"))
    assert texts(str(tmp_path / "[b-f]*")) == ["first", "second", "中文", "ACGT", "a page"]


@pytest.mark.parametrize("named", ["", ".gz", ".zst", ".xz"])
@pytest.mark.parametrize("ending", PACK)
def test_what_it_is_packed_with_is_seen(tmp_path: Path, ending: str, named: str) -> None:
    once = PACK[ending](LINES)
    for data in (once, PACK[".zst"](once), once + once, PACK[ending](b"") + once):
        (tmp_path / f"a.jsonl{named}").write_bytes(data)
        assert texts(tmp_path / f"a.jsonl{named}")[-2:] == ["first", "second"]


def test_beginnings() -> None:
    assert [packing(pack(b"x")) for pack in PACK.values()] == list(PACK)
    assert packing(bz2.compress(b"")) == ".bz2"
    assert packing(SKIPPED + lz4.frame.compress(b"x"), ".zst") == ".lz4"
    assert packing(SKIPPED * 2 + zstandard.compress(b"x"), ".lz4") == ".zst"
    assert packing(SKIPPED, ".lz4") == ".lz4"
    for plain in (b"", b"BZh9 is a name", b"\x1f\x8b", b"(\xb5/", b"plain", b"PAR1"):
        assert packing(plain, ".gz") is None


def test_a_file_that_is_nothing(tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(3000)
    for name in ("a.jsonl.gz", "b.txt.zst", "c.warc.xz"):
        (tmp_path / name).write_bytes(noise)
    documents, rejected = read(str(tmp_path / "*"))
    assert not documents
    assert [r.reason for r in rejected] == ["damaged_file"] * 3


# ----------------------------------------------------------------------------------------- what follows the last member
@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("garbage", [b"GARBAGE", b"\n", b"\0\0\0x", b"G" * 200_000])
def test_garbage_behind_a_complete_stream(tmp_path: Path, ending: str, garbage: bytes) -> None:
    contents = {
        "a.jsonl": LINES.rstrip(),
        "b.csv": b"id,text\n1,first\n2,second",
        "c.fasta": b">x\nfirst\n>y\nsecond",
        "d.txt": b"first\nsecond",
        "e.json": b'[{"text": "first"}, {"text": "second"}]',
    }
    for name, data in contents.items():
        (tmp_path / f"{name}{ending}").write_bytes(PACK[ending](data) + garbage)
        documents, rejected = read(tmp_path / f"{name}{ending}", text_documents="line")
        assert [d.text for d in documents] == ["first", "second"]
        (said,) = rejected
        assert said.reason == "trailing_garbage"
        assert said.bytes == len(garbage.lstrip(b"\0") if ending in (".gz", ".xz") else garbage)


def test_garbage_in_archives_and_layers(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.jsonl.gz", gzip.compress(LINES[:-1]) + b"GARBAGE")
        archive.writestr("y.jsonl.gz", LINES[:-1])
    documents, rejected = read(tmp_path / "a.zip")
    assert [d.text for d in documents] == ["first", "second"] * 2
    assert reasons(rejected) == [("trailing_garbage", "a.zip:x.jsonl.gz")]
    (tmp_path / "b.jsonl.gz.zst").write_bytes(zstandard.compress(gzip.compress(LINES[:-1]) + b"inner") + b"outer")
    documents, rejected = read(tmp_path / "b.jsonl.gz.zst")
    assert [d.text for d in documents] == ["first", "second"]
    assert [(r.reason, r.bytes) for r in rejected] == [("trailing_garbage", 10)]


@pytest.mark.parametrize("ending", PACK)
def test_members_cut_and_padded(tmp_path: Path, ending: str) -> None:
    member = PACK[ending](LINES)
    file = tmp_path / f"a.jsonl{ending}"
    more = PACK[ending](jsonl([{"text": "cut " * 50}]))
    for cut in (*range(1, 14), len(more) // 2, len(more) - 1):
        file.write_bytes(member + more[:cut])
        documents, rejected = read(file)
        assert [d.text for d in documents][:2] == ["first", "second"]
        assert [r.reason for r in rejected] == ["truncated_file"], cut
    if ending in (".gz", ".xz"):
        file.write_bytes(member + bytes(1024) + member + bytes(512))
        assert texts(file) == ["first", "second"] * 2


def test_a_web_archive_goes_on_behind_a_hole(tmp_path: Path) -> None:
    pages = [gzip.compress(warc("response", answer(b"page %d" % n))) for n in range(3)]
    (tmp_path / "a.warc.gz").write_bytes(pages[0] + b"junk" * 50 + pages[1] + pages[2] + b"the end")
    documents, rejected = read(tmp_path / "a.warc.gz")
    assert [d.text for d in documents] == ["page 0", "page 1", "page 2"]
    assert sorted((r.reason, r.bytes) for r in rejected) == [("broken_record", 0), ("trailing_garbage", 7)]


# -------------------------------------------------------------------------------------------------------- dictionaries
@pytest.mark.parametrize("name", ["a.warc.zst", "a.jsonl.zst", "a.jsonl"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_dictionary_in_the_stream(tmp_path: Path, name: str, packed: bool) -> None:
    one = [
        warc("response", answer(b"page %d with some words" % n)) if "warc" in name else jsonl([{"text": f"page {n}"}])
        for n in range(40)
    ]
    dictionary = zstandard.train_dictionary(2000, one * 5)
    pack = zstandard.ZstdCompressor(dict_data=dictionary)
    raw = zstandard.compress(dictionary.as_bytes()) if packed else dictionary.as_bytes()
    frame = b"\x5d\x2a\x4d\x18" + len(raw).to_bytes(4, "little") + raw
    (tmp_path / name).write_bytes(frame + SKIPPED + b"".join(map(pack.compress, one)))
    assert [text[:7].strip() for text in texts(tmp_path / name)] == [f"page {n}" for n in range(40)]
    (tmp_path / name).write_bytes(b"".join(map(pack.compress, one)))  # without it
    assert [r.reason for r in read(tmp_path / name)[1]] == ["damaged_file"]
    (tmp_path / name).write_bytes(frame[:60])
    assert [r.reason for r in read(tmp_path / name)[1]] == ["truncated_file"]


def test_frames_without_data_anywhere(tmp_path: Path) -> None:
    huge = b"\x50\x2a\x4d\x18" + (300_000).to_bytes(4, "little") + bytes(300_000)
    for ending in (".zst", ".lz4"):
        member = PACK[ending](LINES)
        (tmp_path / f"a.jsonl{ending}").write_bytes(SKIPPED + member + huge + SKIPPED + member + SKIPPED)
        assert texts(tmp_path / f"a.jsonl{ending}") == ["first", "second"] * 2
        (tmp_path / f"a.jsonl{ending}").write_bytes(huge + member)
        assert texts(tmp_path / f"a.jsonl{ending}") == ["first", "second"]


# ---------------------------------------------------------------------------------------------------------- by chance
@pytest.mark.parametrize("ending", PACK)
def test_members_of_any_size_in_bites_of_any_size(ending: str) -> None:
    chance = random.Random(ending)
    for _ in range(60):
        parts = [chance.randbytes(chance.choice([0, 1, 5, 3000])) for _ in range(chance.randrange(1, 6))]
        garbage = chance.choice([b"", b"!", b"garbage"])
        damage = Damage()
        stream = Unpacked(io.BytesIO(b"".join(map(PACK[ending], parts)) + garbage), ending, damage, lambda: 1e9)
        stream._bite = chance.choice([1, 2, 7, 100, 1 << 16])
        assert io.BufferedReader(stream, chance.choice([16, 1000])).read() == b"".join(parts)
        assert (damage.reason, damage.garbage) == (None, len(garbage))


def test_layers_have_an_end(tmp_path: Path) -> None:
    data = b"x"
    for _ in range(12):
        data = gzip.compress(data)
    (tmp_path / "a.txt.gz").write_bytes(data)
    documents, rejected = read(tmp_path / "a.txt.gz", Limits())
    assert not documents
    assert [r.reason for r in rejected] == ["invalid_utf8"]

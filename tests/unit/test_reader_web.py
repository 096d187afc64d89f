"""Readers: web archives, whole and broken, and what servers send in them."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import brotli
import lz4.frame
import pytest
import zstandard

from configs.data_sections import Limits
from data_prep.readers import RawRecord, Reading, read_records
from data_prep.readers.http import decoded, split_response
from tests.reading import read

ARCHIVES = Path(__file__).parents[1] / "data" / "warc"
# documents and reasons of each archive, in order
EXPECTED = {
    "bad.arc": ["broken_record", "broken_record", None, "broken_record"],
    "example-bad-non-chunked.warc.gz": [None],  # several records in one gzip member
    "example-bad.warc.gz.bad": [None, "http_status"],
    "example-iana.org-chunked.warc": [None],
    "example-resource.warc.gz": [None],
    "example-space-in-target-uri.warc.gz": ["not_text_media"],  # a picture
    "example-space-in-url.arc": ["truncated_file"],
    "example-trunc.warc": ["broken_record", "broken_record"],
    "example-wget-bad-target-uri.warc.gz": [None, None, None],
    "example-wrong-chunks.warc.gz": ["broken_record"],
    "example.arc.gz": [None],
    "example.warc.gz": [None],
}


def warc(kind: str, body: bytes, content_type: str = "application/http; msgtype=response", length: int = -1) -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{zlib.crc32(body)}>\r\n"
        f"WARC-Target-URI: <http://example.com/>\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body) if length < 0 else length}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def answer(body: bytes, fields: str = "Content-Type: text/plain\r\n", status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\n{fields}\r\n".encode() + body


def outcome(records: list[RawRecord]) -> list[bytes | str]:
    return [record.reason or bytes(record.value or b"") for record in records]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_broken_archives(name: str) -> None:
    records = list(read_records(ARCHIVES / name, Reading(format="warc")))
    assert [record.reason for record in records] == EXPECTED[name]


def test_every_shipped_archive_is_tested() -> None:
    assert {path.name for path in ARCHIVES.iterdir()} == {*EXPECTED, "README.md"}


@pytest.mark.parametrize("name", ["example.warc.gz", "example.arc.gz", "example-bad-non-chunked.warc.gz"])
def test_a_page_becomes_a_document(name: str) -> None:
    (document,), rejected = read(ARCHIVES / name)
    assert not rejected
    assert document.text.startswith("This domain is established to be used for illustrative examples")
    assert document.url == "http://example.com/"
    assert document.metadata["title"] == "Example Domain"
    assert document.read_bytes == 1270
    assert document.id == (f"{name}:0" if "arc.gz" in name and "warc" not in name else document.id)
    assert document.metadata["date"][:4] in ("2014", "2017")


@pytest.mark.parametrize("ending", ["", ".gz", ".lz4", ".zst"])
def test_records_around_broken_ones(tmp_path: Path, ending: str) -> None:
    pieces = [
        warc("warcinfo", b"software: x", "application/warc-fields"),
        warc("response", answer(b"first")),
        b"junk between\r\n records\r\n",
        warc("response", answer(b"too long a length"), length=100),
        warc("request", b"GET / HTTP/1.1\r\n\r\n"),
        warc("response", answer(b"second")),
        warc("response", answer(b"too short a length" * 3), length=60),
        warc("response", answer(b"third")),
        b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: -4\r\n\r\n",
        warc("response", answer(b"fourth")),
        warc("response", b"no answer of a server"),
        warc("response", answer(b"gone", status="404 Not Found")),
        warc("response", answer(b"\x89PNG", "Content-Type: image/png\r\n")),
        warc("conversion", b"as text", "text/plain"),
        warc("response", answer(b"x" * 5000)),
        warc("response", answer(b"y"), length=10**15),
        warc("response", answer(b"fifth")),
    ]
    pack = {"": bytes, ".gz": gzip.compress, ".lz4": lz4.frame.compress, ".zst": zstandard.compress}[ending]
    file = tmp_path / f"f.warc{ending}"
    file.write_bytes(b"".join(map(pack, pieces)))
    records = list(read_records(file, Reading(record_bytes=4000)))
    assert outcome(records) == [
        b"first", "broken_record", "broken_record", b"second", "broken_record", "broken_record", b"third",
        "broken_record", b"fourth", "broken_record", "http_status", "not_text_media", b"as text", "record_too_long",
        "broken_record", b"fifth",
    ]  # fmt: skip
    assert [record.position for record in records] == list(range(len(records)))


def test_a_damaged_gzip_member_and_a_cut_file(tmp_path: Path) -> None:
    members = [gzip.compress(warc("response", answer(f"page {n} ".encode() * 50))) for n in range(6)]
    broken = bytearray(members[2])
    broken[40:60] = b"\x55" * 20
    file = tmp_path / "f.warc.gz"
    file.write_bytes(b"".join([*members[:2], bytes(broken), *members[3:5], members[5][:-20]]))
    found = outcome(list(read_records(file)))
    assert [item for item in found if isinstance(item, bytes)] == [f"page {n} ".encode() * 50 for n in (0, 1, 3, 4)]
    assert sorted(item for item in found if isinstance(item, str)) == ["broken_record", "truncated_file"]


def test_encodings_of_a_body() -> None:
    text = b"<p>a page</p>" * 10
    raw = zlib.compressobj(wbits=-15)
    packed = {
        "gzip": gzip.compress(text), "x-gzip": gzip.compress(text), "deflate": zlib.compress(text),
        "br": brotli.compress(text), "zstd": zstandard.compress(text),
    }  # fmt: skip
    for name, body in packed.items():
        assert decoded(body, {"content-encoding": name.upper()}, 1000) == text
        assert decoded(text, {"content-encoding": name}, 1000) == text  # stored as it was meant
        with pytest.raises(OverflowError):
            decoded(body, {"content-encoding": name}, 50)
    assert decoded(raw.compress(text) + raw.flush(), {"content-encoding": "deflate"}, 1000) == text
    chunks = b"5;x=y\r\n<p>a \r\n8\r\npage</p>\r\n0\r\n\r\n"
    assert decoded(chunks, {"transfer-encoding": "Chunked"}, 1000) == b"<p>a page</p>"
    assert decoded(text, {"transfer-encoding": "chunked"}, 1000) == text
    for damaged in (b"\x1f\x8bnothing", gzip.compress(text)[:10] + b"\xff" * 20):
        with pytest.raises(ValueError, match="content encoding"):
            decoded(damaged, {"content-encoding": "gzip"}, 1000)
    with pytest.raises(ValueError, match="compress is not known"):
        decoded(text, {"content-encoding": "compress"}, 1000)
    assert split_response(b"HTTP/2 301\nLocation: x\n\nbody") == (301, {"location": "x"}, b"body")
    assert split_response(b"<html>") is None


def test_media_types_and_charsets(tmp_path: Path) -> None:
    chinese = "<html><body><p>在很久以前，有一个小村庄，人们过着平静的生活。</p></body></html>"
    pieces = [
        warc("response", answer(chinese.encode("gbk"), "Content-Type: text/html; charset=gbk\r\n")),
        warc("response", answer(b"<html><body><p>No type was stated here.</p></body></html>", "Server: x\r\n")),
        warc("response", answer(b"{}", "Content-Type: application/json\r\n")),
        warc("response", answer(b"?", "Server: x\r\n")),
    ]
    (tmp_path / "f.warc").write_bytes(b"".join(pieces))
    documents, rejected = read(tmp_path / "f.warc", Limits())
    assert [d.text.strip() for d in documents] == [
        "在很久以前，有一个小村庄，人们过着平静的生活。", "No type was stated here.",
    ]  # fmt: skip
    assert [r.reason for r in rejected] == ["not_text_media"] * 2

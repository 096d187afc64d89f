"""Readers: web archives, whole and broken, and what servers send in them."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import brotli
import lz4.frame
import pytest
import zstandard

from configs.schema.data import Limits
from data_prep.readers import RawRecord, Reading, read_records
from data_prep.readers.http import decoded, media_type_of, sniffed_type, split_response
from tests.parts.reading import read

ARCHIVES = Path(__file__).parents[3] / "data" / "warc"
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


TEXT = b"<p>a page</p>" * 10


def plain(body: bytes, limit: int = 1000, **fields: str) -> bytes:
    """A body that is all there, without its codings."""
    found = decoded(body, {name.replace("_", "-"): value for name, value in fields.items()}, limit)
    assert not found.is_cut
    return found.data


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


PACKED = {
    "gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress,
    "zstd": zstandard.compress,
}  # fmt: skip


@pytest.mark.parametrize("name", PACKED)
def test_codings_of_a_body(name: str) -> None:
    body = PACKED[name](TEXT)
    for label in (name.upper(), f" {name} ", f"{name}, identity", f"{name}, {name}", f"utf-8, {name}"):
        assert plain(body, content_encoding=label) == TEXT  # named twice, packed once
    assert plain(body, transfer_encoding=f"{name}, chunked") == TEXT
    assert plain(PACKED[name](body), content_encoding=f"{name},{name}") == TEXT
    for stored in (TEXT, b"A simple text.\n", b'{"a": 1}', b"0", b""):  # as it was meant
        assert plain(stored, content_encoding=name) == stored
    with pytest.raises(OverflowError):
        plain(body, 50, content_encoding=name)
    if name != "br":  # which has no members
        assert plain(PACKED[name](TEXT[:50]) + PACKED[name](TEXT[50:]), content_encoding=name) == TEXT
        assert plain(body + b"\r\n", content_encoding=name) == TEXT
    if name != "deflate":
        with pytest.raises(ValueError, match="damaged"):
            decoded(body[: len(body) // 2] + b"\xff" * 30 + body[len(body) // 2 :], {"content-encoding": name}, 1000)


@pytest.mark.parametrize("name", PACKED)
def test_a_body_that_was_cut_is_read_as_far_as_it_goes(name: str) -> None:
    text = b"".join(b"<p>paragraph %d of a page</p>" % (n * 7919) for n in range(9000))
    body = PACKED[name](text)
    for cut in (len(body) * 3 // 4, len(body) - 1):
        found = decoded(body[:cut], {"content-encoding": name}, 10**6)
        assert text.startswith(found.data)
        assert found.is_cut


def test_names_that_are_no_codings() -> None:
    for name in ("UTF-8", "none", "binary", "text/html", "8bit", "aws-chunked", "", ",", "identity", "compress", "xz"):
        assert plain(TEXT, content_encoding=name) == TEXT
    with pytest.raises(ValueError, match="compress is not known"):
        plain(b"\x1f\x9d\x90\x00\x01" + bytes(range(20)), content_encoding="compress")
    assert plain(raw_deflate(TEXT), content_encoding="deflate") == TEXT
    for damaged in (b"\x1f\x8bnothing", gzip.compress(TEXT)[:10] + b"\xff" * 20):
        with pytest.raises(ValueError, match="content encoding"):
            plain(damaged, content_encoding="gzip")


CHUNKS = [
    b"5;x=y\r\n<p>a \r\n8\r\npage</p>\r\n0\r\n\r\n",
    b'5 ; a="b;c" \r\n<p>a \r\n0008\r\npage</p>\r\n0\r\nTrailer: x\r\nDigest: y\r\n\r\n',
    b"\r\n5\n<p>a \n8  \npage</p>\n0\n",
    b"D\r\n<p>a page</p>\r\n000",
]


def test_chunks() -> None:
    for body in CHUNKS[:3]:
        assert plain(body, transfer_encoding="Chunked") == b"<p>a page</p>"
    assert plain(b"0\r\n\r\n", transfer_encoding="chunked") == b""
    packed = gzip.compress(TEXT)
    both = b"%x\r\n%s\r\n0\r\n\r\n" % (len(packed), packed)
    assert plain(both, transfer_encoding="chunked", content_encoding="gzip") == TEXT
    for body, text in ((CHUNKS[3], b"<p>a page</p>"), (CHUNKS[0][:20], b"<p>a page"[:9]), (b"99\r\n<p>a", b"<p>a")):
        found = decoded(body, {"transfer-encoding": "chunked"}, 1000)
        assert found.is_cut
        assert text.startswith(found.data)
    with pytest.raises(ValueError, match="chunks are damaged"):
        decoded(b"5\r\n<p>a \r\n3\r\npage</p>\r\n0\r\n\r\n", {"transfer-encoding": "chunked"}, 1000)


@pytest.mark.parametrize(
    "text",
    [
        b"A simple guide to bread.\nTake flour, water and salt.\nBake it for an hour.\n",
        b"A\nTake flour, water and salt.\n",
        b"5\nhello\nBake it for an hour.\n",
        b"2024\nnews of the year\n",
        b"0\nis where it begins\n",
        b"ace;\nof spades",
        b"<p>a page</p>",
        b"",
        b"\r\n",
    ],
)
def test_chunks_that_are_not_there(text: bytes) -> None:
    assert plain(text, transfer_encoding="chunked") == text


def test_answers() -> None:
    assert split_response(b"HTTP/2 301\nLocation: x\n\nbody") == (301, {"location": "x"}, b"body")
    assert split_response(b"<html>") is None
    head = b"HTTP/1.1 200 OK\r\nVia: a\r\n  b\r\nno field\r\nVIA : c\r\n: x\r\n\r\n"
    assert split_response(head) == (200, {"via": "a b, c"}, b"")


@pytest.mark.parametrize(
    ("field", "media_type"),
    [
        ("text/html", "text/html"),
        ("text/html, text/html", "text/html"),
        ("text/html;charset=gbk, text/html", "text/html;charset=gbk"),
        ("text/html;charset=gbk, text/html;x=y;charset=big5", "text/html;x=y;charset=big5"),
        ("text/html;charset=gbk, text/plain", "text/plain"),
        ("text/plain;charset=gbk, text/html", "text/html"),
        ('text/html;charset="a,b", */*', 'text/html;charset="a,b"'),
        ("text/html, cannot-parse, ", "text/html"),
        ("text/html charset=utf-8", ""),
        ("html", ""),
        ("*/*", ""),
        ("", ""),
    ],
)
def test_the_media_type_of_a_field(field: str, media_type: str) -> None:
    assert media_type_of(field) == media_type


@pytest.mark.parametrize(
    ("head", "media_type"),
    [
        (b"<!DOCTYPE html><p>", "text/html"),
        (b" \n<HTML>", "text/html"),
        (b"<p>text", "text/html"),
        (b"<!--x--><b>", "text/html"),
        (b"\xef\xbb\xbf<h1>", "text/html"),
        (b"warning in line 1 <html>", "text/html"),
        (b"<?xml version='1.0'?><feed>", "text/xml"),
        (b"<?xml version='1.0'?><html>", "application/xhtml+xml"),
        (b"<px>", ""),
        (b"<pre-release> 5", ""),
        (b"%PDF-1.4", ""),
        (b"?", ""),
    ],
)
def test_the_type_of_a_page_that_states_none(head: bytes, media_type: str) -> None:
    assert sniffed_type(head) == media_type


def test_pages_cut_doubled_and_without_a_type(tmp_path: Path) -> None:
    page = b"<!DOCTYPE html><body><p>A page with enough words in it: %d.</p></body>"
    pieces = [
        warc("response", answer(page % 1, "Server: x\r\n")),
        warc("response", answer(page % 2, "Content-Type: text/html, text/html\r\n")),
        warc("response", answer(page % 3, "Content-Type: text/html\r\ncontent-type: text/html\r\n")),
        warc("response", answer(page % 4, "Content-Type: */*\r\n")),
        warc("response", answer(gzip.compress(page % 5)[:-8], "Content-Type: text/html\r\nContent-Encoding: gzip\r\n")),
    ]
    (tmp_path / "f.warc").write_bytes(b"".join(pieces))
    documents, rejected = read(tmp_path / "f.warc")
    assert not rejected
    assert [d.text.strip()[-2] for d in documents] == list("12345")
    assert [d.metadata.get("truncated") for d in documents] == [None] * 4 + [True]


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

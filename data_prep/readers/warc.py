"""Reads records of WARC (ISO 28500), WET and old ARC files.

The framing is read here, for crawls are broken in ways that end FastWARC (a bad header, a damaged gzip member, ARC)
and warcio (several records in one gzip member), and a record must be passed over without being held. After a broken
record reading goes on at the next header; a record whose length is wrong is `broken_record`, and those that lie within
the length it states are found again.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from data_prep.readers.http import TEXT_TYPES, decoded, media_type_of, plain_type, sniffed_type, split_response
from data_prep.readers.records import Damage, RawRecord, Reading, dropped
from data_prep.readers.streams import CHUNK_BYTES

_HEADER_BYTES = 2**20
_LINE_BYTES = 65536
_NEXT = re.compile(rb"\r?\n(WARC/\d\.\d\r?\n)")
_ARC_DATE = re.compile(rb"\d{8,17}")
_ARC_FIELDS = {b"1": 5, b"2": 10}
_UNKNOWN_TYPES = ("", "unknown/unknown", "application/unknown")  # MIME Sniffing, 7
# Kinds that carry no document: what was asked, what was known already, what is said about others.
_SILENT = frozenset({"warcinfo", "request", "metadata", "revisit", "continuation"})


class _Rewound(io.RawIOBase):
    """A stream to which bytes can be given back."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._back = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._back:
            self._back = cast(io.BufferedReader, self._stream).read1(len(buffer))
        count = min(len(buffer), len(self._back))
        buffer[:count], self._back = self._back[:count], self._back[count:]
        return count

    def buffered(self) -> io.BufferedReader:
        return io.BufferedReader(self, CHUNK_BYTES)

    def give_back(self, reader: io.BufferedReader, data: bytes) -> io.BufferedReader:
        """A new reader that begins with `data`, then goes on where the present one is."""
        ahead = reader.peek()
        self._back = data + ahead + self._back
        reader.detach()
        return self.buffered()


class _Reader:
    """Goes through the records of one file."""

    def __init__(self, stream: BinaryIO, reading: Reading, damage: Damage) -> None:
        self._base = _Rewound(stream)
        self._stream = self._base.buffered()
        self._limit = reading.record_bytes
        self._damage = damage
        self._arc_fields = 0
        self.position = 0

    def records(self) -> Iterator[RawRecord]:
        junk = 0
        while line := self._stream.readline(_LINE_BYTES):
            if line.isspace():
                continue
            arc = None if line.startswith(b"WARC/") else self._arc_header(line)
            if not line.startswith(b"WARC/") and arc is None:
                junk += len(line)
                continue
            if junk:
                yield self._dropped("broken_record", junk, "no header where a record should begin")
                junk = 0
            headers = arc or self._headers()
            record = self._record(headers)
            if record:
                yield record
                self.position += 1
        if junk:
            yield self._dropped("broken_record", junk, "no header where a record should begin")

    def _dropped(self, reason: str, size: int, detail: str, **more: Any) -> RawRecord:
        record = dropped(reason, size, self.position, detail, **more)
        self.position += 1
        return record

    def _arc_header(self, line: bytes) -> dict[str, str] | None:
        """The fields of an ARC record's only header line; None for another line."""
        if line.startswith(b"filedesc:"):
            self._arc_fields = 5
        fields = line.strip().rsplit(b" ", self._arc_fields - 1) if self._arc_fields else []
        if len(fields) < self._arc_fields or not fields or not _ARC_DATE.fullmatch(fields[2]):
            return None
        return {
            "warc-type": "arc_header" if line.startswith(b"filedesc:") else "response",
            "warc-target-uri": fields[0].decode("utf-8", errors="replace"),
            "warc-date": fields[2].decode(),
            "content-type": "application/http",
            "arc-type": fields[3].decode("latin-1"),
            "content-length": fields[-1].decode("latin-1"),
        }

    def _headers(self) -> dict[str, str]:
        """Names in lower case; of a name given twice the first. Empty when they have no end."""
        headers: dict[str, str] = {}
        size, name = 0, ""
        while line := self._stream.readline(_LINE_BYTES):
            size += len(line)
            if not line.strip():
                return headers
            if size > _HEADER_BYTES:
                break
            text = line.decode("utf-8", errors="replace").rstrip("\r\n")
            if text[0] in " \t" and name in headers:
                headers[name] += " " + text.strip()
            elif ":" in text:
                name, _, value = text.partition(":")
                name = name.strip().lower()
                headers.setdefault(name, value.strip())
        else:
            self._damage.set("truncated_file", "the last record is not complete")
            self._damage.lost = size
        return {}

    def _record(self, headers: dict[str, str]) -> RawRecord | None:
        length, kind = headers.get("content-length", ""), headers.get("warc-type", "").lower()
        url = headers.get("warc-target-uri", "").strip("<>") or None
        if not headers and self._damage.lost:
            return None
        if not (length.isascii() and length.isdigit()) or not kind:
            return dropped("broken_record", len(str(headers)), self.position, "no length or no type", url=url)
        wanted = kind not in _SILENT and kind != "arc_header"
        body, size, problem = self._body(int(length), keep=wanted or kind == "arc_header")
        if kind == "arc_header":
            self._arc_fields = _ARC_FIELDS.get((body or b"")[:1], 5)
        if problem == "end":  # reported with the file
            self._damage.set("truncated_file", "the last record is not complete")
            self._damage.lost = size
            return None
        if problem:
            return dropped("broken_record", size, self.position, f"its length is not {length}", url=url)
        if not wanted:
            return None
        if body is None:
            return dropped("record_too_long", size, self.position, url=url)
        return _page(headers, kind, body, size, self.position, url, self._limit)

    def _body(self, length: int, keep: bool) -> tuple[bytes | None, int, str]:
        """The body (None when too long or not wanted), its bytes, and what is wrong: `length`, `end` or nothing."""
        keep = keep and length <= self._limit
        size, tail = 0, b""
        held: list[bytes] = []
        while size < length and (chunk := self._stream.read(min(CHUNK_BYTES, length - size))):
            size += len(chunk)
            if keep:
                held.append(chunk)
                continue
            if length > self._limit and (found := _NEXT.search(tail + chunk)):
                # Nothing is held that could be looked through afterwards.
                rest = (tail + chunk)[found.start(1) :]
                self._stream = self._base.give_back(self._stream, rest)
                return None, size - len(rest), "length"
            tail = (tail + chunk)[-_LINE_BYTES:]
        body = b"".join(held) if keep else tail
        after = self._stream.read(1 if self._arc_fields else 2)
        if size == length and after in (b"", b"\n", b"\r", b"\r\n", b"\n\n"):
            return (body if keep else None), size, ""
        found = _NEXT.search(body + after)
        rest = (body + after)[found.start(1) :] if found else after
        self._stream = self._base.give_back(self._stream, rest)
        if size < length and not found:
            return None, size, "end"
        return None, size + len(after) - len(rest), "length"


def _page(
    headers: dict[str, str], kind: str, body: bytes, size: int, position: int, url: str | None, limit: int
) -> RawRecord:
    more: dict[str, Any] = {"url": url, "name": headers.get("warc-record-id", "").strip("<>") or None}
    date = headers.get("warc-date")
    metadata: dict[str, Any] = {"date": date} if date else {}
    media_type = headers.get("content-type", "")
    if plain_type(media_type) == "application/http":
        try:
            media_type, body, is_cut = _answer(headers, body, size, limit)
        except _NoPage as error:
            return dropped(error.reason, error.size, position, error.detail, **more)
        metadata |= {"truncated": True} if is_cut else {}
    media_type = _kind_of(media_type, headers, body)
    if plain_type(media_type) not in TEXT_TYPES:
        return dropped("not_text_media", len(body), position, media_type, **more)
    return RawRecord(position, body, size, media_type=media_type, metadata=metadata, **more)


class _NoPage(Exception):
    """An answer of a web server without a page."""

    def __init__(self, reason: str, size: int, detail: object) -> None:
        super().__init__(reason)
        self.reason, self.size, self.detail = reason, size, detail


def _answer(headers: dict[str, str], body: bytes, size: int, limit: int) -> tuple[str, bytes, bool]:
    """Media type and decoded body of a web server's answer, and whether the body was cut off.

    Raises:
        _NoPage: there is none; `size` is that of the record.
    """
    response = split_response(body)
    if response is None:
        if "arc-type" in headers:
            return headers["arc-type"], body, False
        raise _NoPage("broken_record", size, "no answer of a web server")
    status, fields, body = response
    if status != 200:
        raise _NoPage("http_status", len(body), status)
    try:
        found = decoded(body, fields, limit)
    except OverflowError as error:
        raise _NoPage("record_too_long", len(body), "its body unfolds to too much") from error
    except ValueError as error:
        raise _NoPage("broken_record", len(body), error) from error
    return fields.get("content-type", ""), found.data, found.is_cut


def _kind_of(media_type: str, headers: dict[str, str], body: bytes) -> str:
    """The media type: as the server said, else as the archive identified it, else as the body looks."""
    media_type = media_type_of(media_type)
    identified = headers.get("warc-identified-payload-type")
    if plain_type(media_type) not in TEXT_TYPES and identified:
        media_type = identified
    return sniffed_type(body) if plain_type(media_type) in _UNKNOWN_TYPES else media_type


def web_records(stream: BinaryIO, reading: Reading, damage: Damage) -> Iterator[RawRecord]:
    """One record a page: responses, resources and conversions; what else is in an archive carries no document."""
    reader = _Reader(stream, reading, damage)
    broken = 0
    for record in reader.records():
        broken += record.reason == "broken_record"
        yield record
    # A damaged gzip member may be missing without a trace in what follows.
    for hole in range(damage.holes - broken):
        yield dropped("broken_record", 0, reader.position + hole, "a damaged gzip member")

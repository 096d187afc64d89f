"""Reads lines, paragraphs or stretches of text files in any encoding."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from data_prep.readers.records import Damage, RawRecord, Reading, dropped
from data_prep.readers.streams import CHUNK_BYTES
from data_prep.text.charset import ISO_2022_JP, UTF8_MARK, decide, decode, is_wide, utf8_evidence
from data_prep.text.decoders import Decoder

_HEAD_BYTES = 65536
_BLOCK_BYTES = 2**18
_CERTAIN_BYTES = 64  # of UTF-8 beyond one a character, without a fault: no other encoding looks like this by chance
_TAIL_BYTES = 256  # of UTF-8 after the last zero byte: 128 characters of UTF-16 never look like this
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")


class _Transcoded(io.RawIOBase):
    """A text file as UTF-8: what it is, is decided when a byte beyond ASCII comes, and again until enough have come."""

    def __init__(self, stream: BinaryIO, wide: str | None) -> None:
        self._stream = stream
        self._decoder = Decoder(wide) if wide else None
        self._name = wide or "utf-8"
        self._open = not wide  # whether the decision may change
        self._telling = b""
        self._good = 0
        self._output = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output and not self._ended:
            data = self._stream.read(_BLOCK_BYTES)
            if self._open and not data.isascii():
                data += self._stream.readline(_BLOCK_BYTES)  # no character is cut at a line end
            self._ended = not data
            self._output = memoryview(self._as_utf8(data))
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def _as_utf8(self, data: bytes) -> bytes:
        if self._open and self._is_utf8(data):
            return (self._decoder.decode(b"", final=True).encode() if self._decoder else b"") + data
        if self._decoder is None:
            return data
        return self._decoder.decode(data, final=not data).encode(errors="replace")

    def _is_utf8(self, data: bytes) -> bool:
        """Tells whether a block is UTF-8 as it stands; if not, looks again what the file is."""
        if data.isascii() and not (self._decoder is None and b"\x1b" in data and ISO_2022_JP.search(data)):
            return self._decoder is None
        if not data.isascii():
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError:
                pass
            else:
                self._good += len(data) - len(text)
                return self._decoder is None or len(data) - len(text) > _CERTAIN_BYTES
        self._decide(data)
        return self._decoder is None

    def _decide(self, data: bytes) -> None:
        if data.isascii():
            name = "iso-2022-jp"
        elif len(self._telling) < _HEAD_BYTES:
            # No encoding of single bytes has zeros: such a line is a record of UTF-16 and tells nothing of the others.
            lines = [line for line in data.splitlines(True) if not line.isascii() and b"\0" not in line]
            self._telling += b"".join(lines)[:_BLOCK_BYTES]
            if not self._telling:
                return
            good, bad = utf8_evidence(self._telling)
            name = "utf-8" if good + self._good > 2 * bad else decide(self._telling)
        else:
            return
        if name != self._name:
            self._name, self._decoder = name, None if name == "utf-8" else Decoder(name)


def as_utf8(stream: BinaryIO, wide_only: bool = False) -> BinaryIO:
    """The stream as UTF-8, without the mark at its beginning.

    Args:
        stream: a buffered one.
        wide_only: for JSON and sequences, which are UTF-8 or ASCII: only UTF-16 and UTF-32 are looked for.
    """
    if skip_mark(stream):
        return stream
    assert isinstance(stream, io.BufferedReader)
    head = stream.peek(_HEAD_BYTES)[:_HEAD_BYTES]
    name = decode(head)[1] if b"\0" in head or head.startswith(_WIDE_MARKS) else ""
    if is_wide(name) and (head.startswith(_WIDE_MARKS) or not _ends_as_utf8(head)):
        return io.BufferedReader(_Transcoded(cast(BinaryIO, stream), name), CHUNK_BYTES)
    if wide_only or _certainly_utf8(head):
        return stream
    return io.BufferedReader(_Transcoded(cast(BinaryIO, stream), None), CHUNK_BYTES)


def _ends_as_utf8(head: bytes) -> bool:
    """Tells whether a long stretch after the last zero byte is UTF-8: then only some records are UTF-16."""
    tail = head[head.rfind(b"\0") + 1 :]
    return len(tail) >= _TAIL_BYTES and (tail.isascii() or _certainly_utf8(tail))


def _certainly_utf8(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return len(head) - len(text) > _CERTAIN_BYTES


def skip_mark(stream: BinaryIO) -> bool:
    """Tells whether the stream began with UTF-8's mark, which is taken off."""
    assert isinstance(stream, io.BufferedReader)
    if not stream.peek(len(UTF8_MARK)).startswith(UTF8_MARK):
        return False
    stream.read(len(UTF8_MARK))
    return True


def text_records(stream: BinaryIO, reading: Reading, damage: Damage) -> Iterator[RawRecord]:
    """Records of a text file: lines, paragraphs, or the whole in parts."""
    if reading.text_documents == "line":
        return lines(stream, reading, damage)
    if reading.text_documents == "paragraph":
        return _paragraphs(stream, reading)
    return cut_bytes(stream, reading.max_part_bytes)


def lines(stream: BinaryIO, reading: Reading, damage: Damage, media_type: str | None = None) -> Iterator[RawRecord]:
    """One record a line that is not empty; a line that damage cut short is left to the damage.

    Args:
        stream: the file's text, as UTF-8.
        reading: for its `record_bytes`.
        damage: what the stream ended by, if it did.
        media_type: of the lines: JSON, or None for text.
    """
    position, limit = 0, reading.record_bytes
    while line := stream.readline(limit + 1):
        size = len(line)
        if size > limit:
            while not line.endswith(b"\n") and (line := stream.readline(CHUNK_BYTES)):
                size += len(line)
            yield dropped("record_too_long", size, position)
        elif damage.reason and not line.endswith(b"\n"):
            damage.lost = size
            return
        elif not (value := line.removeprefix(UTF8_MARK)).isspace():
            yield RawRecord(position, value.strip(b"\r\n"), size, 0, None, media_type)
        position += 1


def _paragraphs(stream: BinaryIO, reading: Reading) -> Iterator[RawRecord]:
    """Stretches of lines between empty ones."""
    position, limit, size = 0, reading.record_bytes, 0
    held: list[bytes] = []
    while line := stream.readline(limit + 1):
        if not line.removeprefix(UTF8_MARK).isspace():
            size += len(line)
            if size <= limit:
                held.append(line)
            else:
                held.clear()
        elif size:
            yield _paragraph(position, held, size, limit)
            position, held, size = position + 1, [], 0
    if size:
        yield _paragraph(position, held, size, limit)


def _paragraph(position: int, held: list[bytes], size: int, limit: int) -> RawRecord:
    return dropped("record_too_long", size, position) if size > limit else RawRecord(position, b"".join(held), size)


def cut_bytes(stream: BinaryIO, max_bytes: int) -> Iterator[RawRecord]:
    """The whole stream as one record, or as parts of at most `max_bytes` that end at a line end where there is one."""
    offset, part, rest = 0, 0, b""
    while data := rest + stream.read(max_bytes - len(rest)):
        more = len(data) == max_bytes and bool(following := stream.read(1))
        end = cut_position(data) if more else len(data)
        yield RawRecord(0, data[:end], end, offset, part if more or part else None)
        offset, part, rest = offset + end, part + 1, data[end:] + (following if more else b"")


def cut_position(data: bytes) -> int:
    """Position to cut at: after the last line end, else before the last character that may be incomplete."""
    end = data.rfind(b"\n") + 1
    if end:
        return end
    end = len(data)
    while end > len(data) - 4 and end > 1 and data[end - 1] & 0xC0 == 0x80:
        end -= 1
    return end - 1 if end > 1 and data[end - 1] >= 0xC0 else len(data)


def whole(stream: BinaryIO, reading: Reading, media_type: str) -> Iterator[RawRecord]:
    """The file as one record, such as a page."""
    data = stream.read(reading.record_bytes + 1)
    if len(data) <= reading.record_bytes:
        if data:
            yield RawRecord(0, data, len(data), 0, None, media_type)
        return
    size = len(data)
    del data
    while chunk := stream.read(CHUNK_BYTES):
        size += len(chunk)
    yield dropped("record_too_long", size)

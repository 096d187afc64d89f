"""Reads the objects of a JSON file one at a time: the items of its list, or its top-level values.

The scanner knows strings and brackets only, so that an item of any size can be passed over without being held; what an
item means is found out where documents are made of it. (Streaming parsers such as ijson hold whole strings and items.)
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from typing import BinaryIO

from data_prep.readers.records import JSON_TYPE, Damage, RawRecord, Reading, dropped
from data_prep.readers.streams import CHUNK_BYTES
from data_prep.text.charset import UTF8_MARK

# A string that ends in the same chunk is one step; else its beginning is, and the rest is looked for later.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("?)|[\[\]{},]', re.DOTALL)
_STRING_END = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+("?)', re.DOTALL)
# How far back it is looked for the line that a bracket begins.
_LINE_BYTES = 256
_MOST_INDENTS = 8
# The end of a string that was never closed and took the beginning of the next item for its own.
_SWALLOWED = re.compile(rb"\n([ \t]*)(\{)[ \t\r\n]*\Z")
_MAY_SWALLOW = re.compile(rb"\n[ \t]*(?:\{[ \t\r\n]*)?\Z")
_BEFORE_OBJECTS = {0x5B: b"[,", 0x7B: b":"}  # all that may stand before an object in a list, and in an object


class _Scanner:
    """Finds where items begin and end.

    In JSON nothing tells where reading could go on after a string or a bracket that is not closed. Where items begin
    lines, a line does that begins as theirs do: with a string behind its brace, if the present item is in a string,
    which may hold no line end (RFC 8259, section 7); or with a brace where the present item, which is not finished,
    could have no object. No text that is JSON is ever cut so.
    """

    def __init__(self, reading: Reading) -> None:
        self._limit = reading.record_bytes
        self._open = bytearray()  # brackets, the innermost last
        self._broken = False  # whether the present item is known to be no JSON
        self._listed = False  # whether the value at the top is a list
        self._in_string = False
        self._escaped = False
        self._before = b"\n"  # the end of what has been read
        self._carried = b""  # read, and to be read again with what follows
        self._indent: bytes | None = None  # before the present item, where it begins a line
        self._usual: set[bytes | None] = set()  # the same of items that were closed
        self._held: list[bytes] = []
        self._size = 0
        self._position = 0

    def feed(self, chunk: bytes) -> Iterator[RawRecord]:
        """The items that end in this piece of the file."""
        chunk, self._carried = self._carried + chunk, b""
        at = start = opened = 0  # `opened`: where the string that is open began
        if self._in_string:
            at = self._string_rest(chunk)
            if not self._in_string:
                at, start = yield from self._string_ended(chunk, 0, at, start)
        while not self._in_string and (match := _TOKEN.search(chunk, at)):
            sign = chunk[match.start()]
            at = match.end()
            if sign == 0x22:  # "
                if match.group(1):
                    at, start = yield from self._string_ended(chunk, match.start(), at, start)
                else:
                    self._in_string, opened = True, match.start()
                    self._escaped = _odd_backslashes(chunk)
            elif sign == 0x2C:  # ,
                if len(self._open) == (1 if self._listed else 0):
                    yield from self._end(chunk[start : at - 1])
                    start = at
            elif sign in b"[{":
                start = yield from self._bracket_opened(chunk, sign, start, at)
            else:
                start = yield from self._bracket_closed(chunk, sign, start, at)
        end = self._carry(chunk, max(start, opened)) if self._in_string else len(chunk)
        self._hold(chunk[start:end])
        self._before = (self._before + chunk[:end])[-_LINE_BYTES:]

    def finish(self, damage: Damage) -> Iterator[RawRecord]:
        """Items that are complete when the file has ended."""
        self._hold(self._carried)
        if self._open:
            damage.set("truncated_file", "a list or an object is not closed")
        if not damage.reason:
            yield from self._end(b"")
            return
        *whole, last = self._lines(b"".join(self._held)) or [b""]
        for piece in whole:
            yield from self._record(piece, len(piece))
        damage.lost = len(last) if whole else self._size

    def _bracket_opened(self, chunk: bytes, sign: int, start: int, at: int) -> Generator[RawRecord, None, int]:
        """Takes in `[` or `{`, read up to `at`; returns where the present item begins."""
        base = 1 if self._listed else 0
        if not self._open and sign == 0x5B:
            yield from self._end(chunk[start : at - 1])
            self._listed, start = True, at
        elif len(self._open) == base:
            if chunk[start : at - 1].strip() or b"".join(self._held).strip() or self._size > self._limit:
                yield from self._end(chunk[start : at - 1])  # what is no item does not make the next one none
                start = at - 1
            self._indent = self._line_before(chunk, at - 1)[0]
        elif sign == 0x7B and self._cuts_off(chunk, at - 1):
            yield from self._end(chunk[start : at - 1], broken=True)
            start = at - 1
            del self._open[base:]
        self._open.append(sign)
        return start

    def _bracket_closed(self, chunk: bytes, sign: int, start: int, at: int) -> Generator[RawRecord, None, int]:
        """Takes in `]` or `}`, read up to `at`; returns where the present item begins."""
        base = 1 if self._listed else 0
        self._broken = self._broken or not self._open or sign - self._open.pop() != 2  # as in `{}` and `[]`
        if not self._open and self._listed:
            yield from self._end(chunk[start : at - 1])
            self._listed, start = False, at
        elif len(self._open) == base:
            if not self._broken and len(self._usual) < _MOST_INDENTS:
                self._usual.add(self._indent)
            yield from self._end(chunk[start:at])
            start = at
        return start

    def _string_ended(
        self, chunk: bytes, begin: int, end: int, start: int
    ) -> Generator[RawRecord, None, tuple[int, int]]:
        """Where to go on, and where the present item begins; ends the item before if the string is none."""
        if chunk[end - 2 : end - 1] in (b"{", b" ", b"\n", b"\t", b"\r"):
            match = _SWALLOWED.search(chunk, max(begin, end - 1 - _LINE_BYTES), end - 1)
            if match and self._begins_item(match[1]):
                yield from self._end(chunk[start : match.start()], broken=True)
                del self._open[1 if self._listed else 0 :]
                return match.start(2), match.start()
        return end, start

    def _string_rest(self, chunk: bytes) -> int:
        start = 1 if self._escaped else 0
        match = _STRING_END.match(chunk, start)
        assert match is not None
        self._in_string = match.group(1) != b'"'
        self._escaped = self._in_string and _odd_backslashes(chunk[start:])
        return match.end()

    def _carry(self, chunk: bytes, opened: int) -> int:
        """Keeps back the last line of an open string, which may be the next item's; returns the end of the rest."""
        match = _MAY_SWALLOW.search(chunk, max(opened, len(chunk) - _LINE_BYTES))
        if match is None:
            return len(chunk)
        end = match.start()
        self._carried = chunk[end:]
        self._escaped = _odd_backslashes(chunk[opened:end])
        return end

    def _line_before(self, chunk: bytes, at: int) -> tuple[bytes | None, bytes]:
        """The white space between the beginning of the line and this place, if it is all, and what stands before."""
        near = chunk[max(0, at - _LINE_BYTES) : at]
        if at < _LINE_BYTES:
            near = self._before + near
        before, end, indent = near.rpartition(b"\n")
        return (indent if end and not indent.strip(b" \t") else None), before.rstrip()

    def _begins_item(self, indent: bytes) -> bool:
        return self._indent is None or indent == self._indent or indent in self._usual

    def _cuts_off(self, chunk: bytes, at: int) -> bool:
        """Tells whether the brace there is that of the next item, as the present one could have none."""
        if at and chunk[at - 1] not in b" \t\n":
            return False
        indent, before = self._line_before(chunk, at)
        if indent is None or not self._begins_item(indent):
            return False
        return self._broken or (bool(before) and before[-1] not in _BEFORE_OBJECTS[self._open[-1]])

    def _hold(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= self._limit:
            self._held.append(piece)
        else:
            self._held.clear()

    def _end(self, piece: bytes, broken: bool = False) -> Iterator[RawRecord]:
        self._hold(piece)
        size, held = self._size, b"".join(self._held)
        self._held, self._size, self._broken = [], 0, False
        if size > self._limit:
            yield dropped("record_too_long", size, self._position)
            self._position += 1
            return
        lines = self._lines(held) if broken else [held]
        for line in lines:
            yield from self._record(line, size if len(lines) == 1 else len(line))

    def _record(self, piece: bytes, size: int) -> Iterator[RawRecord]:
        value = piece.strip().removeprefix(UTF8_MARK)
        if value:
            yield RawRecord(self._position, value, size, 0, None, JSON_TYPE)
            self._position += 1

    def _lines(self, held: bytes) -> list[bytes]:
        """The items that a broken one may have swallowed, by the lines that begin as it does."""
        indent = rb"[ \t]*" if self._indent is None else re.escape(self._indent)
        pieces = re.split(rb"\n(?=" + indent + rb'\{[ \t\r\n]*")', held)
        return [piece.strip().strip(b",") for piece in pieces] if len(pieces) > 1 else pieces


def _odd_backslashes(data: bytes) -> bool:
    return (len(data) - len(data.rstrip(b"\\"))) % 2 == 1


def json_items(stream: BinaryIO, reading: Reading, damage: Damage) -> Iterator[RawRecord]:
    """One record an item."""
    scanner = _Scanner(reading)
    while chunk := stream.read(CHUNK_BYTES):
        yield from scanner.feed(chunk)
    yield from scanner.finish(damage)

"""Objects of a JSON file, one at a time: the items of its list, or the values at its top level.

The scanner knows strings and brackets only, so that an item of any size can be passed over without being held; what an
item means is found out where documents are made of it. (Streaming parsers such as ijson hold whole strings and items.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from data_prep.charset import UTF8_MARK
from data_prep.readers.records import JSON_TYPE, Damage, RawRecord, Reading, dropped
from data_prep.readers.streams import CHUNK_BYTES

# A string that ends in the same chunk is one step; else its beginning is, and the rest is looked for later.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("?)|[\[\]{},]', re.DOTALL)
_STRING_END = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+("?)', re.DOTALL)


class _Scanner:
    """Finds where items begin and end."""

    def __init__(self, reading: Reading) -> None:
        self._limit = reading.record_bytes
        self._depth = 0
        self._listed = False  # whether the value at the top is a list
        self._in_string = False
        self._escaped = False
        self._held: list[bytes] = []
        self._size = 0
        self._position = 0

    def feed(self, chunk: bytes) -> Iterator[RawRecord]:
        at = start = 0
        if self._in_string:
            at = self._string_rest(chunk)
        while match := _TOKEN.search(chunk, at):
            sign = chunk[match.start()]
            at = match.end()
            base = 1 if self._listed else 0
            if sign == 0x22:  # "
                if not match.group(1):
                    self._in_string = True
                    self._escaped = _odd_backslashes(chunk)
            elif sign == 0x2C:  # ,
                if self._depth == base:
                    yield from self._end(chunk[start : at - 1])
                    start = at
            elif sign in b"[{":
                if self._depth == 0 and sign == 0x5B:
                    yield from self._end(chunk[start : at - 1])
                    self._listed, start = True, at
                self._depth += 1
            else:
                self._depth = max(0, self._depth - 1)
                if self._depth == 0 and self._listed:
                    yield from self._end(chunk[start : at - 1])
                    self._listed, start = False, at
                elif self._depth == base:
                    yield from self._end(chunk[start:at])
                    start = at
        self._hold(chunk[start:])

    def finish(self, damage: Damage) -> Iterator[RawRecord]:
        """What is left when the file has ended."""
        if self._depth:
            damage.set("truncated_file", "a list or an object is not closed")
        if damage.reason:
            damage.lost = self._size
        else:
            yield from self._end(b"")

    def _string_rest(self, chunk: bytes) -> int:
        start = 1 if self._escaped else 0
        match = _STRING_END.match(chunk, start)
        assert match is not None
        self._in_string = match.group(1) != b'"'
        self._escaped = self._in_string and _odd_backslashes(chunk[start:])
        return match.end()

    def _hold(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= self._limit:
            self._held.append(piece)
        else:
            self._held.clear()

    def _end(self, piece: bytes) -> Iterator[RawRecord]:
        self._hold(piece)
        size, held = self._size, b"".join(self._held).strip().removeprefix(UTF8_MARK)
        self._held, self._size = [], 0
        if size > self._limit:
            yield dropped("record_too_long", size, self._position)
        elif held:
            yield RawRecord(self._position, held, size, 0, None, JSON_TYPE)
        else:
            return
        self._position += 1


def _odd_backslashes(data: bytes) -> bool:
    return (len(data) - len(data.rstrip(b"\\"))) % 2 == 1


def json_items(stream: BinaryIO, reading: Reading, damage: Damage) -> Iterator[RawRecord]:
    """One record an item."""
    scanner = _Scanner(reading)
    while chunk := stream.read(CHUNK_BYTES):
        yield from scanner.feed(chunk)
    yield from scanner.finish(damage)

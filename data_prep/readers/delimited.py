"""Reads rows of .csv and .tsv files as mappings from column to value.

A quotation mark that begins a field has a meaning where its partner ends that field: before a separator or a line end.
Where it does not, either the file does not quote at all, and the marks are its own, or the row is broken and reading
goes on at the next line. (Python's `csv` makes one text of all rows behind a quote that is not closed, and takes the
marks of `"Hello," he said.`; with `strict` it ends.)
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO, cast

from data_prep.readers.records import Damage, RawRecord, Reading, dropped, unique
from data_prep.readers.streams import CHUNK_BYTES
from data_prep.text.charset import UTF8_MARK

_SAMPLE_BYTES = 65536
_SAMPLE_ROWS = 50
_DELIMITERS = ",;\t|"
# How much is looked at, from the first quote on, to tell whether quotes mean anything.
_AHEAD_BYTES = 2**20
# A quote that is open for longer than this was not meant as one.
_LONG_QUOTE = 65536
_QUOTED = re.compile(r'"([^"]*+(?:""[^"]*+)*+)"')
_CLOSING = re.compile(rb'[^"]*+(?:""[^"]*+)*+"')
_IN_QUOTES = re.compile(rb'"[^"]*+"')
_SEPARATOR_LINE = re.compile(rb'"?sep=([^\r\n])"?\r?\n', re.IGNORECASE)  # which Excel writes and reads


# ---------------------------------------------------------------------------------------------------------------- lines
class _LineFeeds(io.RawIOBase):
    """A stream whose lines end in carriage returns, with line feeds."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._output = b""
        self._return = False  # whether the last byte was one: a line feed behind it belongs to it

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            data = self._stream.read(CHUNK_BYTES)
            if not data:
                return 0
            rest = data[1:] if self._return and data.startswith(b"\n") else data
            self._return = data.endswith(b"\r")
            self._output = rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        count = min(len(buffer), len(self._output))
        buffer[:count], self._output = self._output[:count], self._output[count:]
        return count


def with_line_feeds(stream: BinaryIO) -> BinaryIO:
    """The stream itself, or one with line feeds where its lines end in carriage returns alone, as on old Macs."""
    assert isinstance(stream, io.BufferedReader)
    head = _IN_QUOTES.sub(b"", stream.peek(_SAMPLE_BYTES)[:_SAMPLE_BYTES])
    feeds = head.count(b"\n")
    if head.count(b"\r") - head.count(b"\r\n") <= feeds:
        return stream
    return io.BufferedReader(_LineFeeds(cast(BinaryIO, stream)), CHUNK_BYTES)


class _Lines:
    """Lines of a file, which can be given back."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream, self._limit = stream, limit
        self._back: list[tuple[bytes, int]] = []  # what was given back, and how far it has been read again

    def next(self) -> bytes:
        """The next line with its end, at most one byte more than the limit; empty at the end of the file."""
        if not self._back:
            return self._stream.readline(self._limit + 1)
        data, start = self._back.pop()
        end = data.find(b"\n", start) + 1 or len(data)
        if end < len(data):
            self._back.append((data, end))
        return data[start:end]

    def give_back(self, data: bytes) -> None:
        """Whole lines, to be read again."""
        if data:
            self._back.append((data, 0))

    def pass_over(self, line: bytes) -> int:
        """Reads to the end of a line of which this is the beginning; returns all its bytes."""
        size = len(line)
        while not line.endswith(b"\n") and (line := self._stream.readline(CHUNK_BYTES)):
            size += len(line)
        return size


# ----------------------------------------------------------------------------------------------------------------- rows
@dataclass(slots=True)
class _Row:
    """A row as it was read."""

    values: list[str] = field(default_factory=list)
    size: int = 0
    complete: bool = True  # whether its last line had an end
    reason: str = ""
    detail: str = ""
    quoted: bool = False  # whether a field is in quotes
    needed: bool = False  # whether one could not be without: it holds a separator, a line end or a quote
    open: int = 0  # bytes that were looked through for the end of a quote
    at_end: bool = False  # whether that was the end of the file


class _Rows:
    """The rows of a file.

    Args:
        lines: to be read.
        delimiter: between values.
        tabs: a file of tab-separated values, which by their standard have no quotes.
        quotes: whether they mean anything; None: looked at when the first is met.
        limit: most bytes of a row.
    """

    def __init__(self, lines: _Lines, delimiter: str, tabs: bool, quotes: bool | None, limit: int) -> None:
        self._lines, self._delimiter, self._tabs, self._limit = lines, delimiter, tabs, limit
        self._quotes = quotes
        self._until = 0  # bytes for which a decision holds that was made without evidence
        self._signs = (b'"', delimiter.encode() + b'"')

    def __iter__(self) -> Iterator[_Row]:
        while line := self._lines.next():
            row = self._row(line)
            self._until -= row.size
            yield row

    def _row(self, line: bytes) -> _Row:
        if len(line) > self._limit:
            return _Row(size=self._lines.pass_over(line), reason="record_too_long")
        row = _Row(size=len(line), complete=line.endswith(b"\n"))
        line = line.removeprefix(UTF8_MARK)
        first, within = self._signs
        if b'"' in line and (line.startswith(first) or within in line) and self._asks(line):
            return self._quoted_row(line, row)
        row.values = _text(line).split(self._delimiter)
        return row

    def _quoted_row(self, line: bytes, row: _Row) -> _Row:
        row.quoted = True
        record = bytearray(line)
        state, at = self._parse(_text(line), row, 0)
        while state == "open":
            more = self._lines.next()
            if not more or len(record) + len(more) > self._limit:
                self._lines.give_back(more)
                row.at_end = not more
                break
            record += more
            if _CLOSING.match(more):
                state, at = self._parse(_text(bytes(record)), row, at)
        if state == "done":
            row.size, row.complete = row.size + len(record) - len(line), record.endswith(b"\n")
            return row
        row.open = len(record) if state == "open" or len(record) > len(line) else 0
        row.reason = "broken_record"
        row.detail = "a quote is not closed before a separator or a line end"
        if not row.at_end:
            row.complete = True
        self._lines.give_back(bytes(record[len(line) :]))
        return row

    def _parse(self, text: str, row: _Row, at: int) -> tuple[str, int]:
        """Takes values from `at` on; `done`, `broken`, or `open` with where the open field begins."""
        delimiter = self._delimiter
        while True:
            if text.startswith('"', at):
                match = _QUOTED.match(text, at)
                if match is None:
                    return "open", at
                value, end = match[1], match.end()
                row.needed = row.needed or '"' in value or delimiter in value or "\n" in value
                row.values.append(value.replace('""', '"'))
                if end == len(text):
                    return "done", end
                if text[end] != delimiter:
                    return "broken", at
            else:
                end = text.find(delimiter, at)
                row.values.append(text[at:] if end < 0 else text[at:end])
                if end < 0:
                    return "done", at
            at = end + 1

    def _asks(self, line: bytes) -> bool:
        """Tells whether quotes mean anything, as what follows shows."""
        if self._quotes is not None:
            return self._quotes
        if self._until > 0:
            return True
        ahead = bytearray(line)
        while len(ahead) < _AHEAD_BYTES and (more := self._lines.next()):
            ahead += more
        ended = len(ahead) < _AHEAD_BYTES
        self._lines.give_back(bytes(ahead[len(line) :]))
        trial = _Rows(_Lines(io.BytesIO(ahead), self._limit), self._delimiter, self._tabs, True, self._limit)
        wrong = right = needed = 0
        for row in trial:
            if row.reason == "broken_record":
                if row.open and row.at_end and not ended and row.open < _LONG_QUOTE:
                    break  # what follows may close it
                # A row of .csv that is only left open is damaged; text behind a quote speaks against quoting.
                wrong += self._tabs or not row.open
            elif row.quoted:
                right, needed = right + 1, needed + row.needed
        if not wrong and not needed:
            self._until = len(ahead)
            return True
        self._quotes = wrong <= (needed if self._tabs else right)
        return self._quotes


def _text(line: bytes) -> str:
    """Without the line end. Bytes that are not UTF-8 become lone surrogates, which nothing lets pass as text."""
    return line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", errors="surrogateescape")


# ---------------------------------------------------------------------------------------------------------------- files
def csv_rows(stream: BinaryIO, reading: Reading, damage: Damage, tabs: bool) -> Iterator[RawRecord]:
    """One record a row; columns without a header are named `0`, `1` and so on.

    A row with more or fewer values than the header is `broken_record`, as which value belongs to which column is not
    known; unless the values that are too many are empty, or the columns that are missing have no name.
    """
    stream = with_line_feeds(stream)
    assert isinstance(stream, io.BufferedReader)
    sample = stream.peek(_SAMPLE_BYTES)[:_SAMPLE_BYTES]
    lines = _Lines(stream, reading.record_bytes)
    first = lines.next()
    if said := _SEPARATOR_LINE.fullmatch(first):
        sample, delimiter = sample[len(first) :], said[1].decode("latin-1")
    else:
        lines.give_back(first)
        delimiter = "\t" if tabs else _delimiter(sample)
    header: list[str] | None = None
    position = 0
    for row in _Rows(lines, delimiter, tabs, None, reading.record_bytes):
        values = row.values
        if damage.reason and (not row.complete or row.at_end):
            damage.lost = max(row.size, row.open)
            return
        if row.reason:
            yield dropped(row.reason, row.size, position, row.detail)
        elif values == [""] and not row.quoted:
            continue
        elif header is None:
            header = unique([str(index) for index in range(len(values))])
            if _has_header(values, sample, delimiter, reading.fields) if reading.header is None else reading.header:
                header = unique([name.strip() for name in values])
                named = len(values) - next((n for n, name in enumerate(reversed(values)) if name.strip()), len(values))
                continue
            named = len(header)
            yield RawRecord(position, dict(zip(header, values, strict=True)), row.size)
        elif len(values) < named or any(values[len(header) :]):
            what = f"{len(values)} values, the table has {len(header)} columns"
            yield dropped("broken_record", row.size, position, what)
        else:
            yield RawRecord(position, dict(zip(header, values, strict=False)), row.size)
        position += 1


def _sample_rows(sample: bytes, delimiter: str, tabs: bool = False) -> list[list[str]]:
    lines = _Lines(io.BytesIO(sample), len(sample))
    rows = islice(_Rows(lines, delimiter, tabs, None, len(sample)), _SAMPLE_ROWS)
    return [row.values for row in rows if not row.reason and row.values != [""]]


def _delimiter(sample: bytes) -> str:
    """The separator that cuts the first rows most evenly."""
    whole = sample[: sample.rfind(b"\n") + 1] or sample

    def evenness(delimiter: str) -> tuple[float, int]:
        counts = [len(values) for values in _sample_rows(whole, delimiter)]
        usual = max(set(counts), key=counts.count) if counts else 1
        return (counts.count(usual) / len(counts) if usual > 1 else 0, usual)

    return max(_DELIMITERS, key=evenness)


def _has_header(first: list[str], sample: bytes, delimiter: str, asked: Sequence[str]) -> bool:
    """Tells whether the first row names columns.

    It does where it has a field that is asked for; else if its values are short, different, no numbers, and not what
    follows.
    """
    names = [name.strip() for name in first]
    if any(name in names and not name.isdigit() for name in asked):
        return True
    rest = _sample_rows(sample, delimiter, delimiter == "\t")[1:]
    if not names[0]:  # the column of row numbers that pandas writes
        names[0] = "-"
    if len(set(names)) < len(names) or any(not name or len(name) > 64 or _number(name) for name in names):
        return False
    columns = [[row[index] for row in rest if len(row) == len(first)] for index in range(len(first))]
    return all(name not in column or len(column) < 2 for name, column in zip(first, columns, strict=True)) and all(
        len(name.split()) <= 4 for name in first
    )


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

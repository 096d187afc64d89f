"""Rows of .csv, .tsv and .parquet files as mappings of column to value."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from data_prep.charset import UTF8_MARK
from data_prep.readers.records import Damage, RawRecord, Reading, dropped
from data_prep.readers.streams import CHUNK_BYTES

_SAMPLE_BYTES = 65536
_SAMPLE_ROWS = 50
_DELIMITERS = ",;\t|"
_BATCH_BYTES = 4 * 2**20
_BATCH_ROWS = 4096


class _TooLong(Exception):
    """A row that has no end within the limit."""


class _Lines:
    """Lines for `csv.reader`, which asks for as many as a row has; knows the bytes of the present row.

    Bytes that are not UTF-8 become lone surrogates, which nothing lets pass as text.
    """

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream, self._limit = stream, limit
        self.size = 0
        self.complete = True  # whether the last line had its end

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(self._limit + 1)
        if not line:
            raise StopIteration
        self.size += len(line)
        if len(line) > self._limit:
            while not line.endswith(b"\n") and (line := self._stream.readline(CHUNK_BYTES)):
                self.size += len(line)
        if self.size > self._limit:
            raise _TooLong
        self.complete = line.endswith(b"\n")
        return line.removeprefix(UTF8_MARK).decode("utf-8", errors="surrogateescape")


def csv_rows(stream: BinaryIO, reading: Reading, damage: Damage, tabs: bool) -> Iterator[RawRecord]:
    """One record a row; columns without a header are named `0`, `1`, …

    A row with more or fewer values than the header is `broken_record`: which value belongs to which column is not
    known.
    """
    assert isinstance(stream, io.BufferedReader)
    sample = stream.peek(_SAMPLE_BYTES)[:_SAMPLE_BYTES]
    dialect = _dialect(sample.decode("utf-8", errors="replace"), tabs)
    csv.field_size_limit(max(csv.field_size_limit(), reading.record_bytes))
    source = _Lines(stream, reading.record_bytes)
    reader = csv.reader(source, dialect)
    header: list[str] | None = None
    position = 0
    for values in _rows(reader, source):
        size, source.size = source.size, 0
        if isinstance(values, str):
            yield dropped(values, size, position)
        elif damage.reason and not source.complete:
            damage.lost = size
            return
        elif not values:
            continue
        elif header is None:
            header = [str(index) for index in range(len(values))]
            if _has_header(sample, dialect) if reading.header is None else reading.header:
                header = [name.strip() for name in values]
                continue
            yield RawRecord(position, dict(zip(header, values, strict=True)), size)
        elif len(values) != len(header):
            yield dropped("broken_record", size, position, f"{len(values)} values, the table has {len(header)} columns")
        else:
            yield RawRecord(position, dict(zip(header, values, strict=True)), size)
        position += 1


def _rows(reader: Any, source: _Lines) -> Iterator[list[str] | str]:
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except _TooLong:
            yield "record_too_long"
        except csv.Error:
            yield "broken_record"


class _Tabs(csv.excel_tab):
    """Tab-separated values hardly ever quote: a lone `\"` is a character."""

    quoting = csv.QUOTE_NONE


def _dialect(sample: str, tabs: bool) -> type[csv.Dialect]:
    """The separator that cuts the first lines most evenly; quotes are doubled, as RFC 4180 has it."""
    first = sample.splitlines()[:_SAMPLE_ROWS]
    if tabs:
        return csv.excel_tab if any(line.startswith('"') or '\t"' in line for line in first) else _Tabs

    def evenness(delimiter: str) -> tuple[float, int]:
        counts = [len(row) for row in csv.reader(first[:-1] or first, delimiter=delimiter) if row]
        usual = max(set(counts), key=counts.count) if counts else 1
        return (counts.count(usual) / len(counts) if usual > 1 else 0, usual)

    best = max(_DELIMITERS, key=evenness)

    class Found(csv.excel):
        delimiter = best

    return Found


def _has_header(sample: bytes, dialect: type[csv.Dialect]) -> bool:
    """Whether the first row names columns: its values are short, different, no numbers, and not what follows."""
    lines = sample.decode("utf-8", errors="replace").splitlines()
    rows = [row for row in csv.reader(lines[:_SAMPLE_ROWS], dialect) if row]
    if not rows:
        return False
    first, rest = rows[0], rows[1:]
    names = [name.strip() for name in first]
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

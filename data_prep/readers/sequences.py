"""Reads FASTA and FASTQ files: the sequence without line ends, and the first word of its title as id."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from data_prep.readers.delimited import with_line_feeds
from data_prep.readers.records import Damage, RawRecord, Reading, dropped
from data_prep.readers.streams import CHUNK_BYTES

# Letters of the IUPAC alphabets, gaps and stop signs; digits and other signs are no part of any of them.
_SEQUENCE = re.compile(rb"[A-Za-z*.\-]*+")
_QUALITY = re.compile(rb"[!-~]*+")


class _Entry:
    """A record as it is being read."""

    def __init__(self, title: bytes, size: int, blanks: bool = False) -> None:
        self.title = title
        self.blanks = blanks  # whether white space may stand between letters, as in blocks of ten
        self.lines: list[bytes] = []
        self.letters = 0
        self.qualities = 0
        self.size = size
        self.problem = ""

    def add(self, line: bytes, reading: Reading) -> None:
        """A line of the sequence."""
        line = line.strip()
        if self.blanks and not line.isalpha():
            line = b"".join(line.split())
        if not self.problem and _SEQUENCE.fullmatch(line) is None:
            self.problem = "signs that are no letters of a sequence"
        self.letters += len(line)
        if self.size <= reading.record_bytes and not self.problem:
            self.lines.append(line)
        else:
            self.lines.clear()

    def add_second_title(self, line: bytes) -> None:
        """The line with `+` between letters and qualities."""
        if len(line.strip()) > 1 and line[1:].strip() != self.title.strip():
            self.problem = self.problem or "the title at `+` is another one"

    def add_quality(self, line: bytes) -> None:
        """A line of quality signs."""
        quality = line.strip(b"\r\n")
        self.qualities += len(quality)
        if _QUALITY.fullmatch(quality) is None:
            self.problem = self.problem or "signs that are no qualities"
        if self.qualities > self.letters:
            self.problem = self.problem or "more quality signs than letters"

    def record(self, position: int, reading: Reading) -> RawRecord:
        """The finished record."""
        name, description = (*self.title.decode("utf-8", errors="replace").split(None, 1), "", "")[:2]
        if self.size > reading.record_bytes:
            return dropped("record_too_long", self.size, position, name)
        if self.problem or not self.letters:
            return dropped("broken_record", self.size, position, f"{name}: {self.problem or 'no sequence'}")
        metadata = {"description": description.strip()} if description else {}
        return RawRecord(position, b"".join(self.lines), self.size, name=name or None, metadata=metadata)


def _lines(stream: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Lines, long ones in pieces; whether it is the beginning of one."""
    begins = True
    while line := stream.readline(CHUNK_BYTES):
        yield line, begins
        begins = line.endswith(b"\n")


def fasta_records(stream: BinaryIO, reading: Reading, damage: Damage) -> Iterator[RawRecord]:
    """One record a `>` title with the lines that follow; lines before the first title are `broken_record`.

    White space between the letters is taken out, as Biopython does it (in FASTQ it refuses such a sequence, as here).
    """
    position = 0
    entry: _Entry | None = None
    for line, begins in _lines(with_line_feeds(stream)):
        if begins and line.startswith(b">"):
            if entry:
                yield entry.record(position, reading)
                position += 1
            entry = _Entry(line[1:], len(line), blanks=True)
        elif line.isspace() or (begins and line.startswith(b";")):
            continue
        else:
            if entry is None:
                entry = _Entry(b"", 0, blanks=True)
                entry.problem = "no title before the sequence"
            entry.size += len(line)
            entry.add(line, reading)
    if entry and damage.reason:
        damage.lost = entry.size
    elif entry:
        yield entry.record(position, reading)


def fastq_records(stream: BinaryIO, reading: Reading, damage: Damage) -> Iterator[RawRecord]:
    """One record an `@` title, its sequence, a `+` line and as many quality signs as letters, in one line or more."""
    position = 0
    entry: _Entry | None = None
    in_quality = False
    for line, begins in _lines(with_line_feeds(stream)):
        titled = begins and line.startswith(b"@")
        if entry is None or (in_quality and entry.qualities >= entry.letters and line.strip()):
            # Between records: a title must follow.
            if entry and not titled:
                entry.problem = entry.problem or "more quality signs than letters"
                entry.size += len(line)
                continue
            if entry:
                yield entry.record(position, reading)
                position += 1
            if line.strip():
                entry, in_quality = _Entry(line[1:], len(line)), not titled
                entry.problem = "" if titled else "no `@` title"
            continue
        entry.size += len(line)
        if in_quality:
            entry.add_quality(line)
        elif begins and line.startswith(b"+"):
            in_quality = True
            entry.add_second_title(line)
        else:
            entry.add(line, reading)
    if entry is None:
        return
    if damage.reason or not in_quality or entry.qualities < entry.letters:
        damage.set("truncated_file", "the last sequence is not complete")
        damage.lost = entry.size
    else:
        yield entry.record(position, reading)

"""Chooses the reader of a file by its name, and reads the file's records."""

from __future__ import annotations

import errno
import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from data_prep.readers.archives import tar_records, zip_records
from data_prep.readers.custom import custom_records
from data_prep.readers.delimited import csv_rows, with_line_feeds
from data_prep.readers.json_items import json_items
from data_prep.readers.parquet import parquet_rows
from data_prep.readers.records import CUSTOM, JSON_TYPE, MARKUP_TYPES, Damage, RawRecord, Reading, dropped
from data_prep.readers.sequences import fasta_records, fastq_records
from data_prep.readers.streams import CHUNK_BYTES, COMPRESSIONS, Counted, unpack
from data_prep.readers.text import as_utf8, lines, skip_mark, text_records, whole
from data_prep.readers.warc import web_records
from data_prep.sources.places import Location, Remote, open_place
from data_prep.sources.unreadable import concerns_one, describe

FORMATS = {
    ".txt": "text", ".text": "text", ".md": "markdown", ".markdown": "markdown", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".json": "json", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet", ".warc": "warc",
    ".wet": "warc", ".arc": "warc", ".html": "html", ".htm": "html", ".xhtml": "html", ".xml": "xml",
    ".cnxml": "xml", ".fasta": "fasta", ".fa": "fasta", ".faa": "fasta", ".fna": "fasta", ".ffn": "fasta",
    ".fastq": "fastq", ".fq": "fastq", ".tar": "tar", ".zip": "zip",
}  # fmt: skip
_ARCHIVES = ("tar", "zip")
_SHORT = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".txz": ".tar.xz", ".tzst": ".tar.zst"}
_OF_FILES = frozenset({"truncated_file", "damaged_file", "expands_too_much", "unreadable_file", "trailing_garbage"})
# Faults of a file; others, such as a full disk, are faults of the machine and end the run.
_UNREADABLE = frozenset({errno.EACCES, errno.EPERM, errno.ENOENT, errno.ELOOP, errno.EIO, errno.ENOTDIR})
_SLACK_BYTES = 2 * CHUNK_BYTES


def split_name(name: str) -> tuple[str, list[str]]:
    """The ending that tells the format (`""` for none) and the compressions around it, the outermost first."""
    path = PurePosixPath(name.lower())
    if path.suffix in _SHORT:
        path = path.with_suffix(_SHORT[path.suffix])
    layers = []
    while path.suffix in COMPRESSIONS:
        layers.append(path.suffix)
        path = path.with_suffix("")
    return path.suffix, layers


def file_format(name: str, wanted: str = "auto") -> str | None:
    """`text`, `jsonl`, … as `wanted` says or by the ending; None for an ending that is not known."""
    ending = split_name(name)[0]
    found = FORMATS.get(ending)
    if wanted == "auto" or found in _ARCHIVES:
        return found
    if wanted == "csv" and found == "tsv":
        return "tsv"
    return "warc" if wanted == "wet" else wanted


def check_format(place: Location, wanted: str) -> None:
    """Raises `ValueError` for a file that would not be read."""
    if file_format(place.name, wanted) is None:
        known = ", ".join(FORMATS)
        raise ValueError(
            f"{place}: its ending is not known; files end in {known}, each also with {', '.join(COMPRESSIONS)}; "
            "set the source's `format`, or take it out of `path`"
        )


def read_records(place: Location, reading: Reading | None = None) -> Iterator[RawRecord]:
    """All records of a file in order; what cannot be read of it is a last record with the reason.

    Args:
        place: the file.
        reading: how; by default as its ending says.

    Raises:
        UnreadableFile: for a URL that cannot be reached, after several tries.
    """
    reading = reading or Reading()
    position = -1
    archive = file_format(place.name, reading.format) in _ARCHIVES
    for record in _file_records(place, reading):
        # Members of archives count their records by themselves; the parts of a long text share a position.
        if archive or (record.reason in _OF_FILES and record.member is None):
            position += not record.part
            record = replace(record, position=position)
        position = record.position
        yield record


def _file_records(place: Location, reading: Reading) -> Iterator[RawRecord]:
    damage = Damage()
    try:
        with open_place(place, reading.attempts) as raw:
            counted = Counted(raw)
            buffered = cast(BinaryIO, io.BufferedReader(counted, CHUNK_BYTES))
            opened = _Opened(reading, counted)
            yield from _isolated(lambda: opened.records(place.name, buffered, damage, 0), damage)
    except OSError as error:
        if isinstance(place, Remote) or error.errno not in _UNREADABLE:
            raise
        damage.set("unreadable_file", error.strerror or error)
    yield from damage.records()


def _isolated(records: Callable[[], Iterator[RawRecord]], damage: Damage) -> Iterator[RawRecord]:
    """The records; whatever a library raises at the file or member is damage to it, and the others are read."""
    try:
        yield from records()
    except BaseException as error:
        if isinstance(error, tarfile.TarError) or not concerns_one(error):
            raise  # a .tar that ends within a member is damaged itself
        damage.set("damaged_file", describe(error))


class _Opened:
    """Reads one file from its outermost layer to its records."""

    def __init__(self, reading: Reading, counted: Counted) -> None:
        self._reading, self._counted = reading, counted

    def records(self, name: str, stream: BinaryIO, damage: Damage, slack: int) -> Iterator[RawRecord]:
        """Records of a file or member; damage is told to `damage`."""
        kind = file_format(name, self._reading.format)
        assert kind is not None, name
        stream = unpack(
            stream, split_name(name)[1], damage, self._counted, self._reading.expansion, kind == "warc", slack
        )
        if kind == "tar":
            return tar_records(stream, self._reading, damage, self._member)
        if kind == "zip":
            return zip_records(stream, self._reading, damage, self._member)
        return _plain(kind, stream, self._reading, damage)

    def _member(self, name: str, stream: BinaryIO, size: int) -> Iterator[RawRecord]:
        kind = file_format(name, self._reading.format)
        if kind is None or kind in _ARCHIVES:
            what = "an archive in an archive" if kind else "its ending is not known"
            yield dropped("unknown_format", size, detail=what, member=name)
            return
        if not isinstance(stream, io.BufferedReader):
            stream = cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, stream), CHUNK_BYTES))
        one = kind in MARKUP_TYPES or (kind == "text" and self._reading.text_documents == "file")
        damage = Damage()
        for record in _isolated(lambda: self.records(name, stream, damage, _SLACK_BYTES), damage):
            yield replace(record, member=name if one else f"{name}:{record.position}")
        yield from damage.records(member=name)


def _plain(kind: str, stream: BinaryIO, reading: Reading, damage: Damage) -> Iterator[RawRecord]:
    if kind in MARKUP_TYPES:  # which say by themselves what encoding they are in
        return whole(stream, reading, MARKUP_TYPES[kind])
    if kind == "parquet":
        return parquet_rows(stream, reading, damage)
    if kind == "warc":
        skip_mark(stream)
        return web_records(stream, reading, damage)
    if kind == CUSTOM:
        return custom_records(stream, reading)
    stream = as_utf8(stream, wide_only=kind not in ("text", "csv", "tsv"))
    if kind == "jsonl":
        return lines(with_line_feeds(stream), reading, damage, JSON_TYPE)
    if kind == "text":  # a whole file stays as it is
        in_lines = reading.text_documents != "file"
        return text_records(with_line_feeds(stream) if in_lines else stream, reading, damage)
    if kind == "json":
        return json_items(stream, reading, damage)
    if kind in ("csv", "tsv"):
        return csv_rows(stream, reading, damage, tabs=kind == "tsv")
    assert kind in ("fasta", "fastq"), kind
    return (fasta_records if kind == "fasta" else fastq_records)(stream, reading, damage)

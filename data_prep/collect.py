"""Stage `documents`: raw records to normalised documents of sufficient quality, in Parquet parts.

A part (unit of work) holds some `data.unit_bytes` of raw records of one file. Where the parts begin depends on the file
alone, so any number of workers makes the same ones: a worker reads a file from its start and makes every n-th part.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs.data_sections import Data
from configs.files import atomic_path
from data_prep.documents import Document, Origin, Rejected, to_documents
from data_prep.normalize import normalize
from data_prep.quality import reason_to_drop
from data_prep.readers import RawRecord
from data_prep.stages import Stage, describe_file

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("url", pa.string()),
        ("metadata", pa.string()),  # JSON
        ("offset", pa.int64()),  # UTF-8 bytes before this part in the original text
        ("part", pa.int32()),
        ("bytes", pa.int32()),  # of the normalised text as UTF-8
    ]
)
ROW_GROUP_BYTES = 4 * 2**20
_ROW_GROUP_DOCUMENTS = 65536
_EXAMPLES = 3
_EXCERPT_CHARACTERS = 200


@dataclass(frozen=True)
class FileTask:
    """Every `stride`-th part of a file, from part `first` on."""

    stage: Stage
    data: Data
    origin: Origin
    number: str  # source and file, as in `000-00012`
    first: int
    stride: int


@dataclass
class Tally:
    """Documents and bytes by reason, and some examples of what was kept out."""

    counts: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    examples: list[dict[str, str]] = field(default_factory=list)

    def add(self, reason: str, documents: int, size: int) -> None:
        """Counts documents of `size` bytes in all."""
        entry = self.counts[reason]
        entry[0] += documents
        entry[1] += size

    def reject(self, reason: str, size: int, where: str, excerpt: str) -> None:
        """Counts a document kept out; the first few of a reason are remembered."""
        self.add(reason, 1, size)
        if sum(example["reason"] == reason for example in self.examples) < _EXAMPLES:
            self.examples.append({"reason": reason, "id": where, "excerpt": excerpt})


def part_name(number: str, part: int) -> str:
    """Names sort in the order of sources, files and parts."""
    return f"{number}-{part:06d}"


def collect_file(task: FileTask) -> int:
    """Makes this worker's share of the file's parts, except those already there; returns how many parts the file has.

    Raises:
        ValueError: for a damaged file.
    """
    part = -1
    for part, records in enumerate(_parts(task)):
        name = part_name(task.number, part)
        if part % task.stride == task.first and task.stage.unit(name) is None:
            _write_part(task, name, records)
        else:
            for _ in records:
                pass
    return part + 1


def _parts(task: FileTask) -> Iterator[Iterator[RawRecord]]:
    """The file's records in stretches of `unit_bytes`; each must be used up before the next is asked for."""
    records = task.origin.records(task.data.max_document_bytes)
    head = next(records, None)

    def stretch() -> Iterator[RawRecord]:
        nonlocal head
        size = 0
        while head is not None and size < task.data.unit_bytes:
            size += head.size
            yield head
            head = next(records, None)

    while head is not None:
        yield stretch()


def _write_part(task: FileTask, name: str, records: Iterator[RawRecord]) -> None:
    tally = Tally()
    file = task.stage.directory / f"{name}.parquet"
    digests: list[bytes] = []
    sizes: list[int] = []
    raw_bytes = 0
    with (
        atomic_path(file) as temporary,
        pq.ParquetWriter(temporary, SCHEMA, compression="zstd", compression_level=1) as writer,
    ):
        rows: list[tuple[Any, ...]] = []
        pending = 0
        for record in records:
            raw_bytes += record.size
            for document, encoded in _kept(record, task, tally):
                rows.append(_row(document, len(encoded)))
                digests.append(hashlib.blake2b(encoded, digest_size=16).digest())
                sizes.append(len(encoded))
                pending += len(encoded)
                if pending >= ROW_GROUP_BYTES or len(rows) >= _ROW_GROUP_DOCUMENTS:
                    _flush(writer, rows)
                    pending = 0
        _flush(writer, rows)
    hashes = task.stage.directory / f"{name}.hashes.npy"
    with atomic_path(hashes) as temporary, temporary.open("wb") as stream:
        np.save(stream, sorted_hashes(digests, sizes))
    tally.add("kept", len(sizes), sum(sizes))
    content = {
        "source": task.origin.source.name,
        "file": task.origin.name,
        "documents": len(sizes),
        "bytes": sum(sizes),
        "raw_bytes": raw_bytes,
        "counts": dict(tally.counts),
        "rejected": tally.examples,
        "files": {path.name: describe_file(path) for path in (file, hashes)},
    }
    task.stage.commit(name, content)


def _kept(record: RawRecord, task: FileTask, tally: Tally) -> Iterator[tuple[Document, bytes]]:
    """The record's documents that stay, normalised, with their text as UTF-8."""
    settings = task.data
    for item in to_documents(record, task.origin.source, task.origin.name, settings.max_document_bytes):
        if isinstance(item, Rejected):
            tally.add("read", 1, item.bytes)
            tally.reject(item.reason, item.bytes, item.where, item.excerpt)
            continue
        text = normalize(item.text, settings.normalize)
        encoded = text.encode()
        before = len(encoded) if text is item.text else len(item.text.encode())
        tally.add("read", 1, before)
        tally.add("normalized", 0, before - len(encoded))
        reason = reason_to_drop(text, encoded, settings.quality)
        if reason:
            tally.reject(reason, len(encoded), item.id, text[:_EXCERPT_CHARACTERS])
        else:
            yield Document(item.id, text, item.source, item.url, item.metadata, item.offset, item.part), encoded


def _row(document: Document, size: int) -> tuple[Any, ...]:
    metadata = json.dumps(document.metadata, ensure_ascii=True, default=str) if document.metadata else None
    return document.id, document.text, document.url, metadata, document.offset, document.part, size


def _flush(writer: pq.ParquetWriter, rows: list[tuple[Any, ...]]) -> None:
    if rows:
        columns = zip(*rows, strict=True)
        arrays = [pa.array(column, kind.type) for column, kind in zip(columns, SCHEMA, strict=True)]
        writer.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA))
        rows.clear()


def sorted_hashes(digests: list[bytes], sizes: list[int]) -> np.ndarray:
    """(4, documents) uint64: both halves of the hash, the row, the bytes; sorted by hash, then row."""
    halves = np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2).astype(np.uint64)
    rows = np.arange(len(sizes), dtype=np.uint64)
    order = np.lexsort((rows, halves[:, 1], halves[:, 0]))
    return np.stack([halves[order, 0], halves[order, 1], rows[order], np.array(sizes, dtype=np.uint64)[order]])


def read_part(directory: Path, name: str, columns: list[str]) -> Iterator[tuple[int, pa.Table]]:
    """A part's row groups: the number of the first row and the columns."""
    with pq.ParquetFile(directory / f"{name}.parquet") as file:
        start = 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns, use_threads=False)
            yield start, table
            start += table.num_rows

"""Takes raw records through the chain of `data_prep/documents/chain.py` and writes Parquet parts.

A part (unit of work) holds some `data.unit_bytes` of raw records of one file. Where the parts begin depends on the file
alone, so any number of workers makes the same ones: a worker reads a file from its start and makes every n-th part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs.common.files import atomic_path
from configs.safety.user_code import UserCode
from configs.schema.data import Data
from data_prep.chat.shapes import DOCUMENTS, Wanted
from data_prep.documents.chain import Chain, Dropped
from data_prep.documents.conversion import to_documents
from data_prep.documents.document import Document, Rejected
from data_prep.funnel.tally import KEPT, READ, Tally
from data_prep.readers import RawRecord
from data_prep.readers.origins import Origin
from data_prep.sources.unreadable import concerns_one
from data_prep.workers.parts import SCHEMA
from data_prep.workers.stage import Stage, describe_file
from data_prep.workers.time_limit import Guard, TooSlow

# What `data.keep_dropped` keeps of the others.
DROPPED_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # stage/reason
        ("id", pa.string()),
        ("url", pa.string()),
        ("detail", pa.string()),
        ("text", pa.string()),
        ("bytes", pa.int32()),
    ]
)
ROW_GROUP_BYTES = 4 * 2**20
_ROW_GROUP_DOCUMENTS = 65536


@dataclass(frozen=True)
class FileTask:
    """Every `stride`-th part of a file, from part `first` on."""

    stage: Stage
    data: Data
    origin: Origin
    number: str  # source and file, as in `000-00012`
    first: int
    stride: int
    examples: int = 3  # remembered of every reason, in each part
    characters: int = 200  # of each example
    code: Mapping[int, UserCode] = field(default_factory=dict)  # of the user's own quality rules
    wanted: Wanted = DOCUMENTS  # what records of a source with a shape become


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
    records = task.origin.records(task.data.max_document_bytes, task.data.limits)
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


class _PartWriter:
    """Rows on their way into a part's Parquet files and hashes."""

    def __init__(self, kept: pq.ParquetWriter, dropped: pq.ParquetWriter | None) -> None:
        self._kept = _RowGroups(kept, SCHEMA)
        self._dropped = _RowGroups(dropped, DROPPED_SCHEMA) if dropped else None
        self.digests: list[bytes] = []
        self.sizes: list[int] = []

    def keep(self, document: Document, encoded: bytes) -> None:
        metadata = metadata_json(document.metadata)
        row = (document.id, document.text, document.url, metadata, document.offset, document.part, len(encoded))
        self._kept.add(row, len(encoded))
        self.digests.append(hashlib.blake2b(encoded, digest_size=16).digest())
        self.sizes.append(len(encoded))

    def drop(self, dropped: Dropped) -> None:
        if self._dropped:
            document = dropped.document
            row = (dropped.key, document.id, document.url, dropped.detail, document.text, dropped.size)
            self._dropped.add(row, dropped.size)

    def flush(self) -> None:
        for rows in (self._kept, self._dropped):
            if rows:
                rows.flush()


class _RowGroups:
    """Collects rows to row groups."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema) -> None:
        self._writer, self._schema = writer, schema
        self._rows: list[tuple[Any, ...]] = []
        self._bytes = 0

    def add(self, row: tuple[Any, ...], size: int) -> None:
        self._rows.append(row)
        self._bytes += size
        if self._bytes >= ROW_GROUP_BYTES or len(self._rows) >= _ROW_GROUP_DOCUMENTS:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [pa.array(column, kind.type) for column, kind in zip(columns, self._schema, strict=True)]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
            self._rows.clear()
            self._bytes = 0


def _write_part(task: FileTask, name: str, records: Iterator[RawRecord]) -> None:
    tally = Tally(task.examples, task.characters)
    chain = Chain(task.data, task.origin.source, tally, task.code)
    file, aside = (task.stage.directory / f"{name}{suffix}" for suffix in (".parquet", ".dropped.parquet"))
    raw_bytes = 0
    with ExitStack() as stack:
        kept = stack.enter_context(_parquet(stack, file, SCHEMA))
        dropped = stack.enter_context(_parquet(stack, aside, DROPPED_SCHEMA)) if task.data.keep_dropped else None
        writer = _PartWriter(kept, dropped)
        guard = stack.enter_context(Guard(task.stage, name, task.origin.name, task.data.limits.document_seconds))
        for record in records:
            raw_bytes += record.size
            for item in _items(record, task, guard):
                _take(item, chain, writer, tally)
            guard.rest()
        writer.flush()
    hashes = task.stage.directory / f"{name}.hashes.npy"
    with atomic_path(hashes) as temporary, temporary.open("wb") as stream:
        np.save(stream, sorted_hashes(writer.digests, writer.sizes))
    tally.add(KEPT, len(writer.sizes), sum(writer.sizes))
    content = {
        "source": task.origin.source.name,
        "file": task.origin.name,
        "documents": len(writer.sizes),
        "bytes": sum(writer.sizes),
        "raw_bytes": raw_bytes,
        "counts": dict(tally.counts),
        "marks": dict(tally.marks),
        "examples": tally.examples,
        "files": {path.name: describe_file(path) for path in (file, hashes, aside) if path != aside or dropped}
        | guard.files,
    }
    task.stage.commit(name, content)


def metadata_json(metadata: dict[str, Any]) -> str | None:
    """The metadata in ASCII, without the values that cannot be written; None where there are none."""
    if not metadata:
        return None
    try:
        return json.dumps(metadata, ensure_ascii=True, default=str)
    except Exception as error:  # a key that is no string, a circle, a number too long to be shown, …
        if not concerns_one(error):
            raise
    if len(metadata) == 1:
        return None
    halves = [metadata_json({key: value}) for key, value in metadata.items()]
    return "{" + ", ".join(half[1:-1] for half in halves if half) + "}" if any(halves) else None


def _parquet(stack: ExitStack, file: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer whose file appears under its name when the stack is left without an error."""
    temporary = stack.enter_context(atomic_path(file))
    return pq.ParquetWriter(temporary, schema, compression="zstd", compression_level=1)


def _items(record: RawRecord, task: FileTask, guard: Guard) -> Iterator[Document | Rejected]:
    """The record's documents; nothing of a record that kills workers, no more of one that takes too long."""
    source, name = task.origin.source, task.origin.name
    where = f"{name}:{record.position}"
    if not guard.next(record.position, record.size):
        guard.keep_aside(record.value)
        yield Rejected("crashed", source.name, where, record.size, "")
        return
    items = to_documents(record, source, name, task.data.max_document_bytes, task.data.extract, task.wanted)
    item: Document | Rejected | None
    while True:
        try:
            with guard.limit:
                item = next(items, None)
        except TooSlow:
            yield Rejected("too_slow", source.name, where, record.size, "")
            return
        if item is None:
            return
        yield item


def _take(item: Document | Rejected, chain: Chain, writer: _PartWriter, tally: Tally) -> None:
    if isinstance(item, Rejected):
        key = f"{item.stage}/{item.reason}"
        tally.add(READ, 1, item.bytes)
        tally.add(key, 1, item.bytes)
        tally.example(key, item.where, item.excerpt)
        return
    result = chain(item)
    if isinstance(result, Dropped):
        writer.drop(result)
    else:
        writer.keep(*result)


def sorted_hashes(digests: list[bytes], sizes: list[int]) -> np.ndarray:
    """(4, documents) uint64: both halves of the hash, the row, the bytes; sorted by hash, then row."""
    halves = np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2).astype(np.uint64)
    rows = np.arange(len(sizes), dtype=np.uint64)
    order = np.lexsort((rows, halves[:, 1], halves[:, 0]))
    return np.stack([halves[order, 0], halves[order, 1], rows[order], np.array(sizes, dtype=np.uint64)[order]])

"""Documents: what everything before the tokenizer works on, and how raw records become them.

A record that cannot become a document is a `Rejected` with a reason; nothing is left out without one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from configs.data_sections import Source
from data_prep.readers import RawRecord, cut_position, expand, file_format, names_within, read_records, row_size

MAX_DOCUMENT_BYTES = 16_000_000
_EXCERPT_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Document:
    """One text with its origin.

    A text beyond `data.max_document_bytes` is several documents: `part` counts them, their ids end in `#part`, and
    `offset` is where the part begins in the original text, in UTF-8 bytes.
    """

    id: str
    text: str
    source: str
    url: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    offset: int = 0
    part: int | None = None
    read_bytes: int = 0  # of the record in its file: the payload of a web page, UTF-8 text otherwise


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that is no document."""

    reason: str  # record_too_long, invalid_utf8, invalid_json, missing_text
    source: str
    where: str  # file name:record number
    bytes: int
    excerpt: str


def parent_id(identifier: str, part: int | None) -> str:
    """The id of the whole text that a part was cut from."""
    return identifier if part is None else identifier.removesuffix(f"#{part}")


def read_documents(
    source: Source,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    on_reject: Callable[[Rejected], None] | None = None,
) -> Iterator[Document]:
    """All documents of a source in order, as they stand there (not normalised), in constant memory.

    Args:
        source: name and place of the documents.
        max_document_bytes: longer texts come in parts.
        on_reject: called for every record that is no document; None: they are passed over.

    Raises:
        ValueError: for a file that is missing, damaged or has no text column.
    """
    for origin in origins(source):
        for record in origin.records(max_document_bytes):
            for item in to_documents(record, source, origin.name, max_document_bytes):
                if isinstance(item, Document):
                    yield item
                elif on_reject:
                    on_reject(item)


# -------------------------------------------------------------------------------------------------------------- origins
@dataclass(frozen=True)
class Origin:
    """A file, or one of the pieces that a hub dataset comes in: what one reader reads from start to end."""

    source: Source
    name: str
    path: Path | None = None
    index: int = 0
    count: int = 1

    @property
    def size(self) -> int:
        """Bytes at rest; 0 where unknown."""
        return self.path.stat().st_size if self.path else 0

    def records(self, max_part_bytes: int) -> Iterator[RawRecord]:
        """Its records, no more than the source's `max_documents`."""
        records = (
            read_records(self.path, self.source.text_documents, max_part_bytes) if self.path else _hub_records(self)
        )
        for record in records:
            if self.source.max_documents is not None and record.position >= self.source.max_documents:
                return
            yield record


def origins(source: Source) -> list[Origin]:
    """What the source is read from, in order; names do not depend on where the files lie."""
    if source.path is not None:
        files = expand(source.path)
        return [Origin(source, name, path) for name, path in zip(names_within(files), files, strict=True)]
    assert source.hub is not None
    count = _hub_dataset(source).num_shards
    return [
        Origin(source, f"{source.hub.path}/{source.hub.split}-{index}", None, index, count) for index in range(count)
    ]


def _hub_dataset(source: Source) -> Any:
    import datasets

    assert source.hub is not None
    hub = source.hub
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(
            hub.path, hub.name, split=hub.split, data_files=hub.data_files, revision=hub.revision, streaming=True
        )
    except Exception as error:  # the library raises dozens of types; all mean that there is no such data here
        raise ValueError(
            f"source {source.name}: datasets.load_dataset({hub.path!r}) failed ({type(error).__name__}: {error}); "
            "check `hub.path`, `name`, `split` and the network"
        ) from error


def _hub_records(origin: Origin) -> Iterator[RawRecord]:
    dataset = _hub_dataset(origin.source)
    if origin.count > 1:
        dataset = dataset.shard(num_shards=origin.count, index=origin.index)
    for position, row in enumerate(dataset):
        yield RawRecord(position, row, row_size(row))


# ---------------------------------------------------------------------------------------------------------- conversion
def to_documents(
    record: RawRecord, source: Source, name: str, max_bytes: int = MAX_DOCUMENT_BYTES
) -> Iterator[Document | Rejected]:
    """The document of a record, its parts if it is long, or why it is none.

    Args:
        record: as the reader gave it.
        source: tells the fields' names.
        name: of the file, for ids and messages.
        max_bytes: longer texts are cut.
    """
    where = f"{name}:{record.position}"
    if record.value is None:
        yield Rejected("record_too_long", source.name, where, record.size, "")
    elif isinstance(record.value, dict):
        yield from _from_row(record.value, source, where, record.size, max_bytes)
    elif file_format(Path(name)) == ".jsonl":
        yield from _from_json(record.value, source, where, max_bytes)
    else:
        yield from _from_text(record, source, where, max_bytes)


def _from_text(record: RawRecord, source: Source, where: str, max_bytes: int) -> Iterator[Document | Rejected]:
    assert isinstance(record.value, bytes)
    text = _decode(record.value)
    if text is None:
        yield Rejected("invalid_utf8", source.name, where, len(record.value), _excerpt(record.value))
    elif record.part is not None:
        yield Document(
            f"{where}#{record.part}", text, source.name, None, {}, record.offset, record.part, len(text.encode())
        )
    else:
        yield from _cut(Document(where, text, source.name), max_bytes)


def _from_json(line: bytes, source: Source, where: str, max_bytes: int) -> Iterator[Document | Rejected]:
    text = _decode(line)
    if text is None:
        yield Rejected("invalid_utf8", source.name, where, len(line), _excerpt(line))
        return
    try:
        row = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        row = None
    if isinstance(row, dict):
        yield from _from_row(row, source, where, len(line), max_bytes)
    else:
        yield Rejected("invalid_json", source.name, where, len(line), _excerpt(line))


def _from_row(
    row: dict[str, Any], source: Source, where: str, size: int, max_bytes: int
) -> Iterator[Document | Rejected]:
    text = row.pop(source.text_fields[0], None)
    if not isinstance(text, str):
        excerpt = f"no text in `{', '.join(source.text_fields)}`; fields: {', '.join(map(str, row))}"
        yield Rejected("missing_text", source.name, where, size, excerpt[:_EXCERPT_CHARACTERS])
    elif not _encodable(text):
        yield Rejected("invalid_utf8", source.name, where, size, ascii(text[:_EXCERPT_CHARACTERS]))
    else:
        identifier = row.pop(source.id_field, None)
        url = row.pop(source.url_field, None)
        identifier = where if identifier is None or not _encodable(str(identifier)) else str(identifier)
        url = url if isinstance(url, str) and _encodable(url) else None
        yield from _cut(Document(identifier, text, source.name, url, row), max_bytes)


def _decode(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _encodable(text: str) -> bool:
    """Whether the text has no lone surrogates, which JSON escapes can smuggle in and UTF-8 cannot hold."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _excerpt(data: bytes) -> str:
    return data[:_EXCERPT_CHARACTERS].decode("utf-8", errors="backslashreplace")


def _cut(document: Document, max_bytes: int) -> Iterator[Document]:
    data = document.text.encode()
    if len(data) <= max_bytes:
        yield replace(document, read_bytes=len(data))
        return
    offset, part = 0, 0
    while offset < len(data):
        piece = data[offset : offset + max_bytes]
        end = cut_position(piece) if offset + len(piece) < len(data) else len(piece)
        text = piece[:end].decode()
        yield Document(
            f"{document.id}#{part}", text, document.source, document.url, document.metadata, offset, part, end
        )
        offset, part = offset + end, part + 1

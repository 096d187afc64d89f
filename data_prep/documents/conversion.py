"""Converts raw records to documents.

A record that cannot become a document is a `Rejected` with a reason; nothing is left out without one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from configs.schema.data import Extract
from configs.schema.sources import Source
from data_prep.chat.messages import Prompt, Unusable
from data_prep.chat.shapes import DOCUMENTS, Wanted
from data_prep.documents.document import Document, Rejected
from data_prep.readers import JSON_TYPE, RawRecord, cut_position
from data_prep.readers.fields import split_front_matter, take_text
from data_prep.readers.origins import origins
from data_prep.sources.unreadable import UnreadableFile, concerns_one, describe
from data_prep.text.charset import UTF8_MARK, decode, is_text, without_marks

MAX_DOCUMENT_BYTES = 16_000_000
_EXCERPT_CHARACTERS = 200
_MARKUP = ("text/html", "application/xhtml+xml", "text/xml", "application/xml")
# Reasons that are about a whole file.
_FILE_REASONS = ("truncated_file", "damaged_file", "unreadable_file", "expands_too_much")


def read_documents(
    source: Source,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    on_reject: Callable[[Rejected], None] | None = None,
) -> Iterator[Document]:
    """All documents of a source in order, as they stand there (not normalised), in constant memory.

    Args:
        source: name and place of the documents.
        max_document_bytes: longer texts come in parts.
        on_reject: called for every record that is no document; None: bad records are passed over, bad files are not.

    Raises:
        ValueError: for a file that is missing, and without `on_reject` for one that cannot be read to its end.
    """
    for origin in origins(source):
        for record in origin.records(max_document_bytes):
            for item in to_documents(record, source, origin.name, max_document_bytes):
                if isinstance(item, Document):
                    yield item
                elif on_reject:
                    on_reject(item)
                elif item.reason in _FILE_REASONS:
                    raise UnreadableFile(
                        f"{origin.place or origin.name} cannot be read to its end ({item.reason}: {item.excerpt}); "
                        "fetch it again or take it out of `path`"
                    )


# ---------------------------------------------------------------------------------------------------------- conversion
def to_documents(
    record: RawRecord,
    source: Source,
    name: str,
    max_bytes: int = MAX_DOCUMENT_BYTES,
    extract: Extract | None = None,
    wanted: Wanted = DOCUMENTS,
) -> Iterator[Document | Rejected]:
    """The document of a record, its parts if it is long, or why it is none.

    Args:
        record: as the reader gave it.
        source: tells the fields' names.
        name: of the file, for ids and messages.
        max_bytes: longer texts are cut.
        extract: how text is taken out of markup.
        wanted: what records of a source with a shape become.

    Whatever a library raises for the record, it is rejected as `reader_failed`; see `data_prep.sources.unreadable`.
    """
    converter = _Converter(record, source, f"{name}:{record.member or record.position}", max_bytes, extract)
    converter.wanted = wanted
    taken = 0
    try:
        for item in converter.items():
            taken += item.read_bytes if isinstance(item, Document) else item.bytes
            yield item
    except BaseException as error:
        if not concerns_one(error):
            raise
        yield converter.rejected("reader_failed", describe(error), max(0, record.size - taken))


class _Converter:
    """One record on its way to documents."""

    __slots__ = ("extract", "max_bytes", "record", "source", "wanted", "where")

    def __init__(self, record: RawRecord, source: Source, where: str, max_bytes: int, extract: Extract | None) -> None:
        self.record, self.source, self.where, self.max_bytes, self.extract = record, source, where, max_bytes, extract
        self.wanted = DOCUMENTS

    def items(self) -> Iterator[Document | Rejected]:
        """All that comes of the record."""
        value = self.record.value
        if value is None:
            return iter([self.rejected(self.record.reason or "record_too_long", self.record.detail)])
        if isinstance(value, dict):
            return self.row(value)
        if self.record.media_type == JSON_TYPE:
            return self.json(value)
        if self.source.shape != "text":
            return iter([self.rejected("no_fields", _excerpt(value))])
        return self.page(value)

    def rejected(self, reason: str, excerpt: str, size: int | None = None) -> Rejected:
        size = self.record.size if size is None else size
        return Rejected(reason, self.source.name, self.where, size, excerpt[:_EXCERPT_CHARACTERS])

    def json(self, line: bytes) -> Iterator[Document | Rejected]:
        line = line.removeprefix(UTF8_MARK)
        row, exact = _parse(line)
        if isinstance(row, dict) and not exact and isinstance(row.get(self.source.id_field), float):
            row = _parse_exactly(line)  # a number too long for orjson may be somebody's id
        if isinstance(row, dict):
            yield from self.row(row)
        elif _decode(line) is None:
            yield self.rejected("invalid_utf8", _excerpt(line))
        else:
            yield self.rejected("invalid_json", _excerpt(line))

    def row(self, row: dict[str, Any]) -> Iterator[Document | Rejected]:
        if self.source.shape != "text":
            yield self.unit(row)
            return
        text = take_text(row, self.source.text_fields)
        if text is None:
            names = ", ".join(map(str, row))
            yield self.rejected("missing_text", f"no text in `{', '.join(self.source.text_fields)}`; fields: {names}")
            return
        text = without_marks(text)
        encoded = _encode(text)
        if encoded is None:
            yield self.rejected("invalid_utf8", ascii(text[:_EXCERPT_CHARACTERS]))
            return
        identifier, url = self.named(row)
        document = Document(identifier, text, self.source.name, url, row, 0, None, len(encoded))
        if self.source.markup in ("html", "xml"):
            yield from self.extracted(text, document, len(encoded))
        else:
            yield from _cut(document, encoded, self.max_bytes, len(encoded))

    def named(self, row: dict[str, Any]) -> tuple[str, str | None]:
        """The record's id and URL, which are no part of it any more."""
        identifier, url = row.pop(self.source.id_field, None), row.pop(self.source.url_field, None)
        identifier = None if identifier is None or _encode(str(identifier)) is None else str(identifier)
        return identifier or self.where, url if isinstance(url, str) and _encode(url) is not None else None

    def unit(self, row: dict[str, Any]) -> Document | Rejected:
        """The record as what the objective reads; its text is never cut."""
        identifier, url = self.named(row)
        try:
            unit = self.wanted.of(row, self.source.shape)
        except Unusable as error:
            return self.rejected(error.reason, ascii(error.detail)[1:-1])
        encoded = _encode(unit.text)
        if encoded is None or (isinstance(unit, Prompt) and _encode(unit.reference or "") is None):
            return self.rejected("invalid_utf8", ascii(unit.text[:_EXCERPT_CHARACTERS]))
        return Document(identifier, unit.text, self.source.name, url, {}, 0, None, len(encoded), unit)

    def page(self, data: bytes) -> Iterator[Document | Rejected]:
        record, markup = self.record, self.source.markup
        name, url = (value if value and _encode(value) is not None else None for value in (record.name, record.url))
        document = Document(name or self.where, "", self.source.name, url, dict(record.metadata))
        media_type = (record.media_type or "").partition(";")[0].strip().lower()
        if markup in ("html", "xml") or (markup == "auto" and media_type in _MARKUP):
            yield from self.extracted(data, document, len(data))
            return
        if self.source.text_documents == "file" or media_type not in ("", "text/plain"):
            text, encoding = decode(data, record.media_type, record.url)
        else:  # lines and paragraphs are too short to tell an encoding from; their file was made UTF-8
            text, encoding = data.decode(errors="replace"), "utf-8"
        if encoding != "utf-8" or ("\ufffd" in text and _decode(data) is None):
            if not is_text(text):
                yield self.rejected("invalid_utf8", _excerpt(data), len(data))
                return
            if "\ufffd" in text:
                document.metadata["replaced_characters"] = text.count("\ufffd")
        text = without_marks(text)
        if media_type == "text/markdown":
            metadata, text = split_front_matter(text)
            document.metadata.update(metadata)
        encoded = text.encode()
        if record.part is None:
            yield from _cut(_with(document, text), encoded, self.max_bytes, len(data))
        else:
            yield _with(document, text, record.offset, record.part, len(encoded))

    def extracted(self, data: bytes | str, document: Document, size: int) -> Iterator[Document | Rejected]:
        from data_prep.extraction.extract import NotExtracted, extract

        try:
            found = extract(
                data, self.record.media_type, self.extract or Extract(), document.url, markup=self.source.markup
            )
        except NotExtracted as error:
            failed = self.rejected(error.reason, _excerpt(data) if isinstance(data, bytes) else data, size)
            yield replace(failed, stage="extract")
            return
        text = without_marks(found.text)
        encoded = _encode(text)
        if encoded is None:
            yield self.rejected("invalid_utf8", ascii(text[:_EXCERPT_CHARACTERS]), size)
            return
        document.metadata.update({"title": found.title, **found.metadata} if found.title else found.metadata)
        yield from _cut(_with(document, text), encoded, self.max_bytes, size)


def _parse(line: bytes) -> tuple[Any, bool]:
    """The JSON value (None for none), and whether its numbers are exact.

    orjson is some three times as fast as `json`, and stricter: what it refuses (NaN, lone surrogates, very deep lists)
    is tried again.
    """
    import orjson

    try:
        return orjson.loads(line), False
    except orjson.JSONDecodeError:
        return _parse_exactly(line), True


def _parse_exactly(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):  # of which JSONDecodeError and UnicodeDecodeError are kinds
        return None


def _decode(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _encode(text: str) -> bytes | None:
    """UTF-8; None for a text with lone surrogates, which JSON escapes can smuggle in and UTF-8 cannot hold."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return None


def _excerpt(data: bytes) -> str:
    return data[:_EXCERPT_CHARACTERS].decode("utf-8", errors="backslashreplace")


def _with(document: Document, text: str, offset: int = 0, part: int | None = None, read_bytes: int = 0) -> Document:
    """The document with a text; a part has its number in the id."""
    identifier = document.id if part is None else f"{document.id}#{part}"
    return Document(identifier, text, document.source, document.url, document.metadata, offset, part, read_bytes)


def _cut(document: Document, data: bytes, max_bytes: int, read_bytes: int) -> Iterator[Document]:
    """Parts of a long document; what they were made of in excess of their text is counted with the first."""
    if len(data) <= max_bytes:
        yield document if document.read_bytes == read_bytes else replace(document, read_bytes=read_bytes)
        return
    offset, part = 0, 0
    while offset < len(data):
        piece = data[offset : offset + max_bytes]
        end = cut_position(piece) if offset + len(piece) < len(data) else len(piece)
        yield _with(document, piece[:end].decode(), offset, part, end if part else end + read_bytes - len(data))
        offset, part = offset + end, part + 1

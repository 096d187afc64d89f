"""Reads the documents at paths, in any format that `data.sources` reads, as they stand there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from configs.common.notices import note
from configs.schema.sources import Source
from data_prep.decontamination.evaluation_sets import refuse_broken
from data_prep.documents.conversion import MAX_DOCUMENT_BYTES, to_documents
from data_prep.documents.document import Rejected
from data_prep.readers.origins import origins
from data_prep.workers.verdicts import Part, remaining

BATCH_CHARACTERS = 2**20
_BATCH_TEXTS = 4096


@dataclass(frozen=True)
class Text:
    """A document to score or embed.

    Attributes:
        id: the record's own, or its file and number; of a part of a long text, with `#` and the number of the part.
        text: not normalised, never empty.
        file: its name, relative to the directory that all files have in common.
        source: of a recipe; None for files.
    """

    id: str
    text: str
    file: str
    source: str | None = None


def texts_at(paths: Sequence[str], text_field: str = "text", lines: bool = False) -> Iterator[Text]:
    """Yields the documents of all files, file by file, in constant memory.

    Ids are those of a source of a recipe with these paths. As there, a text of more than 16 MB comes in parts. Empty
    documents are left out, which a note counts.

    Args:
        paths: files, globs or URLs.
        text_field: field with the text, of records that have fields; may be a dotted path.
        lines: each line of a .txt file is a document.

    Raises:
        ValueError: when a path matches nothing, a file cannot be read to its end, or a record is not a document.
    """
    source = Source(name="paths", path=list(paths), text_field=text_field, text_documents="line" if lines else "file")
    empty = 0
    for origin in origins(source):
        for record in origin.records(MAX_DOCUMENT_BYTES):
            for item in to_documents(record, source, origin.name):
                if isinstance(item, Rejected):
                    refuse_broken(item, "the texts")
                elif item.text:
                    yield Text(item.id, item.text, origin.name)
                else:
                    empty += 1
    if empty:
        note(f"empty documents are left out: {empty:,}")


def prepared_texts(parts: Sequence[Part]) -> Iterator[Text]:
    """Yields the documents of parts as their verdicts leave them, in constant memory."""
    for part in parts:
        for _, fields in remaining(part, ["id", "text"]):
            if fields["text"]:
                yield Text(fields["id"], fields["text"], part.name, part.source)


def batched_texts(texts: Iterable[Text]) -> Iterator[list[Text]]:
    """Groups texts to about a million characters, so that those of similar length can share a pass of the model."""
    batch: list[Text] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text.text)
        if size >= BATCH_CHARACTERS or len(batch) == _BATCH_TEXTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch

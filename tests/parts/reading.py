"""What the tests of the readers share: everything that a source gives, in short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from configs.schema.data import Limits
from configs.schema.sources import Source
from data_prep.documents.conversion import to_documents
from data_prep.documents.document import Document, Rejected
from data_prep.readers.origins import origins


def source(path: Path | str | list[Path], **settings: Any) -> Source:
    """A source of these files."""
    paths = [str(item) for item in path] if isinstance(path, list) else str(path)
    return Source(name="s", path=paths, **settings)


def read(
    path: Path | str | list[Path], limits: Limits | None = None, part_bytes: int = 10**6, **settings: Any
) -> tuple[list[Document], list[Rejected]]:
    """Documents and rejected records of a source."""
    made = source(path, **settings)
    items = [
        item
        for origin in origins(made)
        for record in origin.records(part_bytes, limits)
        for item in to_documents(record, made, origin.name, part_bytes)
    ]
    documents = [item for item in items if isinstance(item, Document)]
    return documents, [item for item in items if isinstance(item, Rejected)]


def texts(path: Path | str | list[Path], **settings: Any) -> list[str]:
    """Texts of a source of which nothing is rejected."""
    documents, rejected = read(path, **settings)
    assert rejected == []
    return [document.text for document in documents]


def reasons(rejected: list[Rejected]) -> list[tuple[str, str]]:
    """Why, and where."""
    return [(item.reason, item.where) for item in rejected]


def jsonl(rows: list[Any]) -> bytes:
    """Rows as lines of JSON."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()

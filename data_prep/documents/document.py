"""Defines the document, and the record that could not become one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from data_prep.chat.messages import AnyUnit

# Key of a document's metadata in its Parquet part: what the text says, where the source has a shape.
UNIT = "unit"


@dataclass(frozen=True, slots=True)
class Document:
    """One text with its origin.

    A text beyond `data.max_document_bytes` is several documents: `part` counts them, their ids end in `#part`, and
    `offset` is where the part begins in the original text, in UTF-8 bytes.

    Where the source has a shape, the text is that of the messages, and the messages are what is learnt from. Such a
    document stays whole or goes: nothing cuts it, and what changes it changes its messages.
    """

    id: str
    text: str
    source: str
    url: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    offset: int = 0
    part: int | None = None
    read_bytes: int = 0  # of the record in its file: the payload of a web page, UTF-8 text otherwise
    unit: AnyUnit | None = None  # what the text says, where the source has a shape


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that is no document."""

    reason: str  # see docs/sources.md
    source: str
    where: str  # file name:record number
    bytes: int
    excerpt: str
    stage: str = "read"  # or extract


def parent_id(identifier: str, part: int | None) -> str:
    """The id of the whole text that a part was cut from."""
    return identifier if part is None else identifier.removesuffix(f"#{part}")

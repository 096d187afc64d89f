"""Defines the document, and the record that could not become one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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

    reason: str  # see docs/sources.md
    source: str
    where: str  # file name:record number
    bytes: int
    excerpt: str
    stage: str = "read"  # or extract


def parent_id(identifier: str, part: int | None) -> str:
    """The id of the whole text that a part was cut from."""
    return identifier if part is None else identifier.removesuffix(f"#{part}")

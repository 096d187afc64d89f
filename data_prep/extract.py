"""Markup to text: one page, fragment or XML document to the text a reader would see."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from configs.data_sections import Extract
from data_prep.charset import decode

__all__ = ["Extracted", "NotExtracted", "decode", "extract"]


class NotExtracted(Exception):
    """A document that gives no text; `reason` is one word for the funnel."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Extracted:
    """The text of a document and what its markup says about it."""

    text: str
    title: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def extract(
    data: bytes | str, media_type: str | None, settings: Extract, url: str | None = None, markup: str = "auto"
) -> Extracted:
    """Text of one document."""
    from resiliparse.extract.html2text import extract_plain_text

    text, encoding = decode(data, media_type) if isinstance(data, bytes) else (data, None)
    if markup == "none" or (markup == "auto" and "html" not in (media_type or "")):
        return Extracted(text)
    text = extract_plain_text(text, main_content=settings.html != "text", comments=settings.comments)
    if not text.strip():
        raise NotExtracted("no_main_text")
    return Extracted(text, metadata={"encoding": encoding} if encoding else {})

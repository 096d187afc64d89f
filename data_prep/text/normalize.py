"""Normalises the text of every document before any rule sees it."""

from __future__ import annotations

import re
import unicodedata

from configs.schema.data import Normalize

# UTF-8 read as Latin-1 or Windows-1252: a lead byte's character followed by a continuation byte's. ftfy, which is slow,
# sees only lines with such a pair, and decides by itself whether they are damaged.
_CONTINUATION = "".join(
    sorted({chr(byte) for byte in range(0x80, 0xC0)} | set(bytes(range(0x80, 0xC0)).decode("cp1252", errors="ignore")))
)
_MOJIBAKE = re.compile(f"[\u00c2-\u00f4][{re.escape(_CONTINUATION)}]")
_EMPTY_LINES = re.compile(r"\n{3,}")


def normalize(text: str, settings: Normalize) -> str:
    """Applies the recipe's `data.normalize`: repair, then Unicode form, then whitespace."""
    if settings.mojibake and not text.isascii() and _MOJIBAKE.search(text):
        text = _repair(text)
    if settings.unicode != "none" and not text.isascii() and not unicodedata.is_normalized(settings.unicode, text):
        text = unicodedata.normalize(settings.unicode, text)
    return _tidy(text) if settings.whitespace else text


def _repair(text: str) -> str:
    import ftfy

    return "\n".join(ftfy.fix_encoding(line) if _MOJIBAKE.search(line) else line for line in text.split("\n"))


def _tidy(text: str) -> str:
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = "\n".join(map(str.rstrip, text.split("\n"))).strip("\n")
    return _EMPTY_LINES.sub("\n\n", text) if "\n\n\n" in text else text

"""Turns one HTML page, HTML fragment or XML document into the text that a reader sees.

Web pages: the main text by trafilatura (Barbaresi 2021, https://aclanthology.org/2021.acl-demo.15) in its fast mode, or
by resiliparse (Bevendorff et al. 2018); the measurements behind the default are in docs/benchmarks.md. Code blocks keep
their lines and indentation as they stand, without fences.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from configs.schema.data import Extract
from data_prep.extraction.nesting import MarkupShape
from data_prep.extraction.neutral_html import blocks_apart, marked, rows_in_place, words_kept
from data_prep.text.charset import decode

__all__ = ["Extracted", "NotExtracted", "decode", "extract"]

# libxml2, on which trafilatura stands, silently leaves out what is nested deeper or larger; resiliparse does not.
_LIBXML2_DEPTH = 250
_LIBXML2_CHARACTERS = 4_000_000
_MAX_DEPTH = 2_000  # resiliparse's time grows with the square of the depth
_TITLE = re.compile(r"<title[^>]*>([^<]{1,2000})", re.IGNORECASE)
# trafilatura takes a <pre> for a quotation, and its lines for one paragraph, unless something in it says code.
_PRE = re.compile(r"<(/?)pre\b([^>]*)>", re.IGNORECASE)
_TITLE_CHARACTERS = 65_536
_TAG = re.compile(r"<[a-zA-Z!/?]")
_PAGE = re.compile(r"<!doctype\s+html|<(?:html|head|body|frameset)\b", re.IGNORECASE)
_JUNK = re.compile("[\x01-\x08\x0e-\x1a\x1c-\x1f\ufffd]")
_MAX_JUNK = 0.1
_SAMPLE_CHARACTERS = 8_192
_BULLET = re.compile(r"^( *)[•◦▪‣] ", re.MULTILINE)
# Where a line may be broken and the like: layout, not text (joiners, which change letters in some scripts, stay).
_INVISIBLE = re.compile("[\xad\u200b\u2060-\u2064\ufeff]")
# Media types that hold text as it is, beyond text/*.
_TEXT_TYPES = frozenset({"application/x-tex"})
_NO_TEXT_TYPES = frozenset({"text/css", "text/javascript", "text/ecmascript", "text/vcard", "text/calendar"})


class NotExtracted(Exception):
    """A document that gives no text.

    Reasons: `no_main_text`, `not_markup` (binary, or no tag in it), `not_text` (a media type that holds none),
    `too_deep` (nested elements), `too_many_attributes`, `extractor_failed`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Extracted:
    """The text of a document and what its markup says about it.

    `metadata` has `encoding` where the bytes were not UTF-8, and `extractor` where it was not the one asked for.
    """

    text: str
    title: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def extract(
    data: bytes | str, media_type: str | None, settings: Extract, url: str | None = None, markup: str = "auto"
) -> Extracted:
    """Text of one document.

    Args:
        data: Bytes as served or stored; or characters, such as a field of a JSON record.
        media_type: `Content-Type`, with or without a charset; None: told from the document's beginning.
        settings: The recipe's `data.extract`.
        url: Address of the page, to which relative links are resolved where links are kept.
        markup: The source's `markup`: `html` and `xml` override the media type; `none`: the text as it is. HTML without
            `<html>`, `<body>` or a doctype is a fragment, all of which is content.

    Raises:
        NotExtracted: with the reason for the funnel.
    """
    text, encoding = decode(data, media_type) if isinstance(data, bytes) else (data, "utf-8")
    metadata = {} if encoding == "utf-8" else {"encoding": encoding}
    kind = _kind(text, media_type, markup)
    if kind == "text":
        return Extracted(text, metadata=metadata)
    text = _clean(text)
    if not text.strip():
        raise NotExtracted("no_main_text")
    if kind == "xml":
        from data_prep.extraction.xml_text import xml_text

        body, title = xml_text(text, settings.links)
        if body is None:
            raise NotExtracted("too_deep" if title == "too_deep" else "not_markup")
    else:
        body, title = _html(
            text, settings, url, metadata, page=isinstance(data, bytes) or bool(_PAGE.search(text[:2000]))
        )
    if not body.strip():
        raise NotExtracted("no_main_text")
    if not body.isascii():
        body = _INVISIBLE.sub("", body)
    return Extracted(body, title, metadata)


def _kind(text: str, media_type: str | None, markup: str) -> str:
    """`html`, `xml` or `text`; raises NotExtracted for a media type that is none of them."""
    if markup != "auto":
        return "text" if markup == "none" else markup
    kind = (media_type or "").partition(";")[0].strip().lower()
    if not kind:
        return _sniffed(text)
    if kind in ("text/html", "application/xhtml+xml"):
        return "html"
    if kind in ("text/xml", "application/xml") or kind.endswith("+xml"):
        return "html" if _PAGE.search(text[:2000]) else "xml"
    if kind in _TEXT_TYPES or (kind.startswith("text/") and kind not in _NO_TEXT_TYPES):
        return "text"
    raise NotExtracted("not_text")


def _sniffed(text: str) -> str:
    beginning = text[:2000].lstrip("\ufeff \t\r\n")
    if beginning.startswith("<") and _PAGE.search(beginning):
        return "html"
    return "xml" if beginning.startswith("<?xml") else "text"


def _clean(text: str) -> str:
    """Without NUL, which some parsers take for the end, and without lone surrogates, which have no UTF-8."""
    if "\x00" in text:
        text = text.replace("\x00", "")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


# ----------------------------------------------------------------------------------------------------------------- HTML
def _html(
    text: str, settings: Extract, url: str | None, metadata: dict[str, Any], page: bool
) -> tuple[str, str | None]:
    sample = text[:_SAMPLE_CHARACTERS]
    if (page and not _TAG.search(text)) or len(_JUNK.findall(sample)) > _MAX_JUNK * len(sample):
        raise NotExtracted("not_markup")
    shape = MarkupShape(text)
    if shape.depth_beyond(_MAX_DEPTH, slash_ends=False):
        raise NotExtracted("too_deep")
    if shape.too_many_attributes():
        raise NotExtracted("too_many_attributes")
    if not page and "<" not in text and "&" not in text:
        return text, None
    text = words_kept(text)
    if not page:
        return _by_resiliparse(text, settings, main=False), None
    found = _TITLE.search(text[:_TITLE_CHARACTERS])
    title = " ".join(html.unescape(found.group(1)).split()) or None if found else None
    if settings.html != "trafilatura":
        return _by_resiliparse(text, settings, main=settings.html == "resiliparse"), title
    if len(text) > _LIBXML2_CHARACTERS or shape.depth_beyond(_LIBXML2_DEPTH):
        metadata["extractor"] = "resiliparse"
        return _by_resiliparse(text, settings, main=True), title
    return _by_trafilatura(text, settings, url), title


def _by_trafilatura(text: str, settings: Extract, url: str | None) -> str:
    from trafilatura import bare_extraction

    from data_prep.extraction.markup_text import BLOCK_CODE, render

    text = blocks_apart(text)
    text = _PRE.sub(lambda tag: "</code></pre>" if tag[1] else f"<pre{tag[2]}><code>{BLOCK_CODE}", text)
    try:
        document = bare_extraction(text, url=url, options=_options(settings.tables, settings.comments, settings.links))
        if document is None:
            return ""
        parts = [render(document.body, settings.links)]
        if settings.comments and document.commentsbody is not None:
            parts.append(render(document.commentsbody, settings.links))
    except Exception as error:  # whatever a page makes a library do, only that page is lost, under its own reason
        raise NotExtracted("extractor_failed") from error
    return "\n\n".join(part for part in parts if part).replace(BLOCK_CODE, "")


@lru_cache(maxsize=8)
def _options(tables: bool, comments: bool, links: bool) -> Any:
    """trafilatura's settings; `xml` keeps the structure that `render` needs and leaves out its own writing."""
    import logging

    from trafilatura.settings import Extractor

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # pages without text are counted, not logged
    return Extractor(output_format="xml", fast=True, formatting=False, comments=comments, links=links, tables=tables)


def _by_resiliparse(text: str, settings: Extract, main: bool) -> str:
    """All text, or the main text; table cells, set apart by tabs there, by ` | ` as elsewhere."""
    from resiliparse.extract.html2text import extract_plain_text

    keep_all = not main
    text = marked(text, settings.tables)
    try:
        result = extract_plain_text(
            text,
            main_content=main,
            comments=settings.comments or keep_all,
            post_meta=keep_all,
            alt_texts=False,
            links=settings.links,
            skip_elements=None if settings.tables else ["table"],
        )
    except BaseException as error:  # a panic of the Rust code is no Exception
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise NotExtracted("extractor_failed") from error
        raise
    result = rows_in_place(result)
    return _BULLET.sub(r"\1- ", result)

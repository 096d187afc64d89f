"""Reads the text of XML block by block: CNXML (OpenStax), DocBook, JATS, feeds and any other.

The document type and the entities it declares are taken off before parsing, so that none is expanded and nothing
outside the document is opened.
"""

from __future__ import annotations

import re
from html.entities import html5
from typing import Any

from data_prep.extraction.markup_text import ROLES, Role, name_of, render
from data_prep.extraction.nesting import MarkupShape

_MAX_DEPTH = 250  # libxml2 leaves out what is deeper than 256
_PROLOGUE = re.compile(r"^\s*<\?xml[^>]*\?>")
_DOCTYPE = re.compile(r"<!DOCTYPE[^\[>]*(?:\[.*?\]\s*)?>", re.DOTALL)
_ENTITY = re.compile(r"&([A-Za-z][\w.-]*);")
_OF_XML = frozenset({"amp", "lt", "gt", "quot", "apos"})
# Feeds (RSS, RSS 1.0, Atom) hold HTML as text, escaped or as CDATA, in these elements.
_FEEDS = frozenset({"rss", "rdf", "feed"})
_OF_FEEDS = frozenset(
    {"description", "encoded", "content", "summary", "title", "subtitle", "rights", "tagline", "info"}
)
_HTML_TAG = re.compile(
    r"</?(?:a|abbr|b|big|blockquote|br|caption|center|cite|code|dd|del|div|dl|dt|em|figcaption|figure|font|h[1-6]|hr|i|img|"
    r"iframe|ins|li|ol|p|pre|q|s|section|small|span|strike|strong|sub|sup|table|tbody|td|th|thead|tr|tt|u|ul|video)"
    r"(?:[\s/][^<>]*)?>",
    re.IGNORECASE,
)
_HTML_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# Elsewhere escaped tags may be what a sentence is about, so all of the text must be one piece of HTML.
_ALL_HTML = re.compile(
    r"\s*<(p|div|h[1-6]|ul|ol|dl|table|blockquote|section|article|pre|span|strong|em|b|i)(?:\s[^<>]*)?>.*</[a-z1-6]+>\s*\Z",
    re.IGNORECASE | re.DOTALL,
)
_MAX_DEPTH_UNFOLDED = 100  # Python recurses into both
_CONTROLS = re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def xml_text(text: str, links: bool = False) -> tuple[str | None, str | None]:
    """Text and title of an XML document; broken ones as far as they can be read.

    Returns:
        Text and title (None: it has none); or None and a reason, `not_markup` or `too_deep`.
    """
    if MarkupShape(text).xml_depth_beyond(_MAX_DEPTH):
        return None, "too_deep"
    root = _parsed(text)
    if root is None:
        return None, "not_markup"
    _unfold_markup(root)
    title = next((child for child in root if name_of(child) == "title"), None)
    heading = " ".join("".join(title.itertext()).split()) if title is not None else None
    _drop_repeated_title(root)
    return render(root, links), heading or None


def _parsed(text: str) -> Any:
    from lxml import etree

    text = _CONTROLS.sub("", _DOCTYPE.sub("", _PROLOGUE.sub("", text, count=1), count=1))
    text = _ENTITY.sub(lambda found: found.group() if found[1] in _OF_XML else html5.get(f"{found[1]};", ""), text)
    parser = etree.XMLParser(
        encoding="utf-8",
        recover=True,
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        return etree.fromstring(text.strip().encode(), parser)
    except etree.XMLSyntaxError:
        return None


def _drop_repeated_title(root: Any) -> None:
    """CNXML gives its title again among the metadata."""
    for metadata in [child for child in root if name_of(child) == "metadata"]:
        for child in [child for child in metadata if name_of(child) == "title"]:
            metadata.remove(child)


def _unfold_markup(root: Any) -> None:
    """Puts HTML that an element holds as text in its place, as elements; in feeds, and where all of a text is HTML."""
    feed = name_of(root) in _FEEDS
    usual = "text" if name_of(root) == "feed" else "html"  # Atom says which
    for element in list(root.iter()):
        text = element.text
        if not text or len(element) or ("<" not in text and "&" not in text) or _in_code(element):
            continue
        if feed and name_of(element) in _OF_FEEDS and element.get("type", usual) in ("html", "text/html"):
            held = _HTML_TAG.search(text) or _HTML_ENTITY.search(text)
        else:
            held = element.get("type") == "html" or _ALL_HTML.match(text)
        if (
            held
            and not (shape := MarkupShape(text)).depth_beyond(_MAX_DEPTH_UNFOLDED)
            and not shape.too_many_attributes()
        ):
            _replace_text(element, text)


def _in_code(element: Any) -> bool:
    """Tells whether the element, or one around it, shows its text as it stands."""
    return any(ROLES.get(name_of(item)) is Role.CODE for item in (element, *element.iterancestors()))


def _replace_text(element: Any, text: str) -> None:
    from lxml import html

    body = html.document_fromstring(f"<html><body>{text}</body></html>").find("body")
    if body is not None:
        element.text = body.text
        element.extend(list(body))

"""Text of XML: CNXML (OpenStax), DocBook, JATS, feeds and any other, block by block.

The document type and the entities it declares are taken off before parsing, so that none is expanded and nothing
outside the document is opened.
"""

from __future__ import annotations

import re
from html.entities import html5
from typing import Any

from data_prep.blocks import name_of, render
from data_prep.nesting import Shape

_MAX_DEPTH = 250  # libxml2 leaves out what is deeper than 256
_PROLOGUE = re.compile(r"^\s*<\?xml[^>]*\?>")
_DOCTYPE = re.compile(r"<!DOCTYPE[^\[>]*(?:\[.*?\]\s*)?>", re.DOTALL)
_ENTITY = re.compile(r"&([A-Za-z][\w.-]*);")
_OF_XML = frozenset({"amp", "lt", "gt", "quot", "apos"})
_CONTROLS = re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def xml_text(text: str, links: bool = False) -> tuple[str | None, str | None]:
    """Text and title of an XML document; broken ones as far as they can be read.

    Returns:
        Text and title (None: it has none); or None and a reason, `not_markup` or `too_deep`.
    """
    if Shape(text).depth_beyond(_MAX_DEPTH):
        return None, "too_deep"
    root = _parsed(text)
    if root is None:
        return None, "not_markup"
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

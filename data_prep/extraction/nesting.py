"""Checks markup before a parser sees it: deep nesting and many attributes make parsers hang or give up silently."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

# Elements without an end tag, and those whose end tag may be left out: neither makes the tree deeper by itself.
_SHALLOW_NAMES = (
    "area base basefont bgsound br col embed frame hr img input link meta param source track wbr keygen isindex "
    "p li dt dd option optgroup tr td th thead tbody tfoot colgroup rt rp html head body"
)
_SHALLOW = frozenset(_SHALLOW_NAMES.split())
_RAW = re.compile(
    r"<!--.*?(?:-->|\Z)|<(script|style|textarea|title|xmp|iframe|noembed|noframes)\b.*?(?:</\1\s*>|\Z)",
    re.IGNORECASE | re.DOTALL,
)
# XML by its own rules: what is no markup although it has a `<`, then tags with their attributes.
_XML = re.compile(
    r"<!--.*?(?:-->|\Z)|<!\[CDATA\[.*?(?:\]\]>|\Z)|<\?.*?(?:\?>|\Z)"
    r"|<(/?)([^\s<>/!?\"'=]++)((?:[^<>\"']++|\"[^<\"]*+\"|'[^<']*+')*+)(>?)",
    re.DOTALL,
)
_HARMLESS_CHARACTERS = 750  # 250 levels of `<b>`, which every parser takes
_MAX_ATTRIBUTES = 2_000  # parsers compare each with all before it
# An attribute and a tag as HTML's tokenizer has them (13.2.5.32 to 42): names may hold quotes and `<`, values `>` too.
# Each takes all that it can, whether it ends or not, so that no text is looked at twice.
_ATTRIBUTE_TEXT = r"""=?[^\s/>=]++(?:\s*+=\s*+(?:"[^"]*+"?|'[^']*+'?|[^\s>"'][^\s>]*+)?+)?+[\s/]*+"""
_ATTRIBUTE = re.compile(_ATTRIBUTE_TEXT)
_TAG = re.compile(rf"<[a-zA-Z][^\s/>]*+(?:[\s/]++(?:{_ATTRIBUTE_TEXT})*+)?")
_TAGS = re.compile(rf"<(/?)([a-zA-Z][^\s/>]*+)([\s/]*+(?:{_ATTRIBUTE_TEXT})*+)(>?)")


class MarkupShape:
    """Nesting depth of a text, bounded from the positions of `<` in its bytes."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._most = 0
        if len(text) < _HARMLESS_CHARACTERS:
            return
        data = np.frombuffer(text.encode(), dtype=np.uint8)
        at = np.flatnonzero(data[:-1] == ord("<"))
        after = data[at + 1]
        letters = after | 0x20
        begins = (
            ((letters >= ord("a")) & (letters <= ord("z")))
            | (after >= 0x80)
            | (after == ord("_"))
            | (after == ord(":"))
        )
        steps = begins.astype(np.int32) - (after == ord("/"))
        level = np.cumsum(steps)
        self._most = int((level - np.minimum(np.minimum.accumulate(level), 0)).max(initial=0))

    def depth_beyond(self, limit: int, slash_ends: bool = True) -> bool:
        """Tells whether elements may be nested deeper than `limit`; those left open count until the end of the text.

        Args:
            limit: of elements around one another.
            slash_ends: take `<div/>` for an element that has ended, as libxml2 does and HTML's own rules do not.
        """
        if self._most <= limit:
            return False
        tags = (
            (bool(end), name, slash_ends and rest.endswith("/"))
            for end, name, rest, closed in _TAGS.findall(_RAW.sub("", self._text).lower())
            if closed and name not in _SHALLOW
        )
        return _deeper(tags, limit)

    def xml_depth_beyond(self, limit: int) -> bool:
        """The same of XML: no element ends by itself, and CDATA, comments and instructions are no elements."""
        if self._most <= limit:
            return False
        found = _XML.findall(self._text)
        return _deeper(((bool(end), name, rest.endswith("/")) for end, name, rest, closed in found if closed), limit)

    def too_many_attributes(self) -> bool:
        """Tells whether one tag has more attributes than any page needs."""
        return len(self._text) > 2 * _MAX_ATTRIBUTES and any(
            len(tag[0]) > 2 * _MAX_ATTRIBUTES and len(_ATTRIBUTE.findall(tag[0])) > _MAX_ATTRIBUTES
            for tag in _TAG.finditer(self._text)
        )


def _deeper(tags: Iterable[tuple[bool, str, bool]], limit: int) -> bool:
    """Tells whether tags (is an end, name, ends itself) nest deeper than `limit`. An end closes one of its name."""
    open_now: Counter[str] = Counter()
    depth = 0
    for end, name, empty in tags:
        if empty and not end:
            continue
        if not end:
            open_now[name] += 1
            depth += 1
            if depth > limit:
                return True
        elif open_now[name]:
            open_now[name] -= 1
            depth -= 1
    return False

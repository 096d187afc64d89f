"""Looks at markup before a parser does: nesting and attributes on which parsers take forever, or give up silently."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

# Elements without an end tag, and those whose end tag may be left out: neither makes the tree deeper by itself.
_SHALLOW_NAMES = (
    "area base basefont bgsound br col embed frame hr img input link meta param source track wbr keygen isindex "
    "p li dt dd option optgroup tr td th thead tbody tfoot colgroup rt rp html head body"
)
_SHALLOW = frozenset(_SHALLOW_NAMES.split())
_RAW = re.compile(r"<!--.*?-->|<(script|style|textarea)\b.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_TAGS = re.compile(r"<(/?)([a-zA-Z][^\s/>]*)([^<>]*)>")
_LONG_TAG = re.compile(r"<[a-zA-Z][^<>]{10000,}")
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_MAX_ATTRIBUTES = 2_000  # parsers compare each with all before it


def depth_beyond(text: str, limit: int) -> bool:
    """Whether elements may be nested deeper than `limit`. Elements left open count until the end of the text."""
    if text.count("<") <= limit or _upper_bound(text) <= limit:
        return False
    open_now: Counter[str] = Counter()
    depth = 0
    for end, name, rest in _TAGS.findall(_RAW.sub("", text)):
        name = name.lower()
        if name in _SHALLOW:
            continue
        if not end:
            if not rest.endswith("/"):
                open_now[name] += 1
                depth += 1
                if depth > limit:
                    return True
        elif open_now[name]:
            open_now[name] -= 1
            depth -= 1
    return False


def _upper_bound(text: str) -> int:
    """Tags opened less tags closed, at most: a look at the bytes after each `<`, without knowing elements."""
    data = np.frombuffer(text.encode(), dtype=np.uint8)
    after = data[np.flatnonzero(data[:-1] == ord("<")) + 1]
    lower = after | 0x20
    steps = ((lower >= ord("a")) & (lower <= ord("z"))).astype(np.int32) - (after == ord("/"))
    level = np.cumsum(steps)
    return int((level - np.minimum(np.minimum.accumulate(level), 0)).max(initial=0))


def too_many_attributes(text: str) -> bool:
    """Whether one tag has more attributes than any page needs."""
    return any(
        len(_QUOTED.sub("", tag.group()).replace("=", " ").split()) > _MAX_ATTRIBUTES
        for tag in _LONG_TAG.finditer(text)
    )

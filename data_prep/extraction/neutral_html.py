"""Rewrites the HTML that extractors are known to delete or to run together, and nothing else.

Tried element by element with trafilatura 2.3 and resiliparse 2.0: both delete `<time>` with its words, trafilatura
also formulas and a few more, and runs the text of a block together with that of a block inside it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

# Elements that are deleted although their words may be part of a sentence: the date of "met on <time>5 March</time>
# and voted", where text stands on one side at least (alone it is the date of a page or of an entry in a list) …
_INLINE = re.compile(
    r"<(time|output|meter|blink|marquee)\b[^<>]*>((?:[^<]|<(?!/?(?:time|output|meter|blink|marquee)\b)){1,400})</\1\s*>",
    re.IGNORECASE,
)
# … and controls, on both: "Click <button>Save</button> to go on".
_CONTROL = re.compile(r"<(button|label)\b[^<>]*>([^<>]{1,80})</\1\s*>", re.IGNORECASE)
_JOINS_BEFORE = re.compile(r"[\w,;:(“\"'-][ \t\r\n]*\Z")
_JOINS_AFTER = re.compile(r"[ \t\r\n]*[\w,;.:)”\"'-]")
_MATH = re.compile(r"<math\b(?:[^<]|<(?!/?math\b))*+</math\s*>", re.IGNORECASE)
# A block's border is white space: not inside <pre>, where it would be text.
_BORDER = re.compile(
    r"<pre\b(?:[^<]|<(?!/pre\b))*+(?:</pre\s*>)?"
    r"|<(?:address|article|aside|blockquote|center|details|div|dl|fieldset|figure|form|main|ol|section|summary|table|ul)\b"
    r"|</(?:address|article|aside|blockquote|center|details|div|dl|fieldset|figure|form|main|ol|section|summary|table|ul)\s*>",
    re.IGNORECASE,
)
_PHRASE = "a abbr b cite code em font i kbd mark q s samp small span strong sub sup tt u var"
_ENDS_PHRASE = tuple(f"</{name}>" for name in _PHRASE.split())
_PHRASE_BEGINS = re.compile(rf"<(?:{_PHRASE.replace(' ', '|')})\b", re.IGNORECASE)
_LONGEST_END = max(map(len, _ENDS_PHRASE))
_NOT_BLANK = re.compile(r"\S")
# resiliparse leaves out an element that holds one character of three bytes or more, such as `<b>中</b>`, and gives an
# empty cell no place in its row: DEL, which no text has, beside such a character, twice in such a cell.
KEPT = "\x7f"
EMPTY_CELL = KEPT * 2
_CELLS = re.compile(r"(?<=\S) *\t\t *(?=\S)")
_ALONE = re.compile(r">(\s*[\u0800-\U0010ffff])(?=\s*</)")
_NO_TEXT = r"(?:\s|&nbsp;|&#160;|<(?!/?(?:t[dhr]|table|caption)\b)[^<>]*>)*+"
_EMPTY = re.compile(rf"(<t[dh]\b[^<>]*>){_NO_TEXT}(?=</?t[dhr]\b|</table\b)", re.IGNORECASE)


def words_kept(text: str) -> str:
    """The page with words inside a sentence in elements that stay."""
    text = _INLINE.sub(lambda found: _as_span(found, any), text)
    text = _CONTROL.sub(lambda found: _as_span(found, all), text)
    return _MATH.sub(_formula, text) if "<math" in text else text


def blocks_apart(text: str) -> str:
    """The page with a line's end wherever text and a block meet."""
    return _BORDER.sub(_apart, text)


def marked(text: str, tables: bool) -> str:
    """The page with signs (`KEPT`, `EMPTY_CELL`) in places that resiliparse would leave out."""
    text = text.replace(KEPT, "")
    if not text.isascii():
        text = _ALONE.sub(rf">\1{KEPT}", text)
    return _EMPTY.sub(rf"\1{EMPTY_CELL}", text) if tables and "<t" in text else text


def rows_in_place(text: str) -> str:
    """What resiliparse made of a marked page: cells set apart by ` | `, empty ones keep their place, signs gone.

    A row with one filled cell keeps its place where the row before or after it has several; else it is layout.
    """
    text = _CELLS.sub(" | ", text)
    if KEPT not in text:
        return text
    lines = text.split("\n")
    cells = [line.split(" | ") if EMPTY_CELL in line or " | " in line else [line] for line in lines]
    filled = [[cell for cell in row if cell.strip() not in ("", EMPTY_CELL)] for row in cells]
    written = []
    for at, line in enumerate(lines):
        if EMPTY_CELL in line:
            if not filled[at]:
                continue
            around = max(map(len, [*filled[max(0, at - 1) : at], *filled[at + 1 : at + 2]]), default=0)
            if len(filled[at]) == 1 and around < 2:
                line = filled[at][0]
            else:
                line = " | ".join(cell.replace(EMPTY_CELL, "") for cell in cells[at]).rstrip(" |")
                line = line.lstrip(" ") if line.startswith(" |") else line
        written.append(line)
    return "\n".join(written).replace(KEPT, "")


def _apart(found: re.Match[str]) -> str:
    """The tag of a block with `<br>` where text touches it (white space alone is trimmed)."""
    tag, text, (start, end) = found[0], found.string, found.span()
    closes = tag[1] == "/"
    whole = not closes and tag[1:4].lower() == "pre"
    if not closes:
        at = start
        while at and text[at - 1] in " \t\r\n":
            at -= 1
        if at and (text[at - 1] != ">" or text[max(0, at - _LONGEST_END) : at].lower().endswith(_ENDS_PHRASE)):
            tag = f"<br>\n{tag}"
    if closes or whole:
        next_ = _NOT_BLANK.search(text, end)
        if next_ and (next_[0] != "<" or _PHRASE_BEGINS.match(text, next_.start())):
            tag = f"{tag}\n<br>"
    return tag


def _as_span(found: re.Match[str], sides: Callable[[list[bool]], bool]) -> str:
    text, (start, end) = found.string, found.span()
    before = _JOINS_BEFORE.search(text[max(0, start - 16) : start]) is not None
    after = _JOINS_AFTER.match(text, end) is not None
    return f"<span>{found[2]}</span>" if sides([before, after]) else found[0]


def _formula(found: re.Match[str]) -> str:
    from lxml import etree

    from data_prep.extraction.markup_text import formula

    parser: Any = etree.XMLParser(recover=True, resolve_entities=False, no_network=True, huge_tree=False)
    try:
        root = etree.fromstring(html.unescape(found[0]).replace("&", "&amp;").encode(), parser)
    except etree.XMLSyntaxError:
        root = None
    return f"<span>{html.escape(formula(root))}</span>" if root is not None else found[0]

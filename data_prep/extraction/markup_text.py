"""Renders a tree of elements as text: paragraphs apart, list items with `- `, a line for each table row.

Shared by the main text of web pages and by XML. What an element is, follows from its name (`ROLES`: TEI as trafilatura
writes it, HTML, DocBook, JATS, CNXML); an unknown one is part of a sentence where its parent has text of its own beside
it, and a block otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from typing import Any


class Role(Enum):
    """How an element is rendered."""

    INLINE = "part of a sentence"
    BLOCK = "apart from what is around it"
    LIST = "items, one level deeper"
    ITEM = "marked with `- ` or its number"
    TABLE = "rows that stand together"
    ROW = "one line"
    CELL = "separated by ` | `"
    CODE = "line breaks and indentation kept where it has several lines"
    BREAK = "line end"
    LINK = "its address can be kept"
    NOTE = "in brackets"
    MEANING = "after a colon"
    MATH = "formula"
    SKIP = "nothing"


_NAMES = {
    Role.INLINE: "abbrev acronym b bold cite code-inline del em email emphasis filename fn font hi i ins italic "
    "keycap literal mark option quote-inline replaceable s small span strong sub subscript sup superscript term tt u "
    "userinput var varname xref",
    Role.BLOCK: "abstract article author body book caption chapter content dd definition div document dl dt equation "
    "example exercise figcaption figure glossary h1 h2 h3 h4 h5 h6 head label note ab p para preface "
    "problem quote sec section sect1 sect2 sect3 simpara solution subtitle tbody tfoot tgroup thead tip title "
    "warning blockquote",
    Role.LIST: "list itemizedlist orderedlist ul ol variablelist",
    Role.ITEM: "item listitem li varlistentry",
    Role.TABLE: "table informaltable",
    Role.ROW: "row tr",
    Role.CELL: "cell entry td th",
    Role.CODE: "code pre preformat programlisting screen literallayout synopsis verse",
    Role.BREAK: "br lb newline",
    Role.LINK: "a link ref ulink",
    Role.NOTE: "footnote",
    Role.MEANING: "meaning",
    Role.MATH: "math",
    Role.SKIP: "script style graphic image iframe colspec content-id uuid",
}
ROLES = {name: role for role, names in _NAMES.items() for name in names.split()}
_XML_SPACE = "{http://www.w3.org/XML/1998/namespace}space"
_SPACE = re.compile(r"\s+")
_BLANKS = re.compile(r"[^\S\n]+")
_AROUND_BREAKS = re.compile(r" *\n *")
# Begins code that stands in a block of its own, which TEI does not tell from code inside a sentence.
BLOCK_CODE = "\ue002"
# Stands for a link without text (CNXML refers to figures so) until its empty parentheses are gone with it.
_EMPTY_LINK = "\ue000"
_IN_PARENTHESES = re.compile(rf"\s*[(\[](?:see |{_EMPTY_LINK}|[\s,;]|and )*{_EMPTY_LINK}\s*[)\]]", re.IGNORECASE)
_OPERATOR = {"mfrac": "/", "msup": "^", "msub": "_", "mover": "^", "munder": "_"}


def render(root: Any, links: bool = False) -> str:
    """Text of an lxml element and all below it.

    Args:
        root: An element; nested no deeper than Python recurses (callers limit it to 256).
        links: Write `[text](address)` instead of the text of a link.
    """
    writer = _Writer(links)
    writer.visit(root, Role.BLOCK)
    return writer.text()


def name_of(element: Any) -> str:
    """Name of an element without its namespace, in lower case; empty for comments and the like."""
    tag = element.tag
    return tag.rpartition("}")[2].lower() if isinstance(tag, str) else ""


class _Writer:
    """Collects inline text into `run` and, at the end of a block, into `lines`."""

    def __init__(self, links: bool) -> None:
        self.links = links
        self.lines: list[tuple[int, str]] = []  # group and text: those of one group follow without an empty line
        self.run: list[str] = []
        self.group = 0  # number of the list or table that is being read
        self.counters: list[int | None] = []  # of the lists around: the number of the last item, None without numbers
        self.marker = ""  # of the item whose first line is still to come
        self.cell: list[str] | None = None  # blocks of the table cell that is being read
        self.row: list[list[str]] | None = None
        self.columns = False  # a row of the table that is being read has several filled cells
        self.lone_rows: list[tuple[int, list[list[str]]]] = []  # its rows with one: where in `lines`, and their cells
        self.preserve = False  # white space of the element that is being read (xml:space)
        self.kept = False  # the run has some whose white space stays
        self.visits = {
            Role.LIST: self._list,
            Role.ITEM: self._item,
            Role.TABLE: self._table,
            Role.ROW: self._row,
            Role.CELL: self._cell,
            Role.CODE: self._code,
            Role.LINK: self._link,
            Role.NOTE: self._note,
            Role.MEANING: self._meaning,
            Role.MATH: self._math,
        }

    def text(self) -> str:
        """Everything written."""
        self.flush()
        pieces: list[str] = []
        last = 0
        for group, line in self.lines:
            if pieces:
                pieces.append("\n" if group and group == last else "\n\n")
            pieces.append(line)
            last = group
        return "".join(pieces)

    def visit(self, element: Any, role: Role) -> None:
        """Writes an element without its tail."""
        if role is Role.SKIP:
            return
        space = element.get(_XML_SPACE)
        if space in ("preserve", "default") and (space == "preserve") != self.preserve:
            self.preserve = not self.preserve
            self._visit(element, role)
            self.preserve = not self.preserve
            return
        self._visit(element, role)

    def _visit(self, element: Any, role: Role) -> None:
        if role is Role.BREAK:
            self.run.append("\n")
        elif role in self.visits:
            self.visits[role](element)
        elif role is Role.INLINE:
            self.children(element)
        else:
            self.flush()
            self.children(element)
            self.flush()

    def children(self, element: Any) -> None:
        """Writes what is inside an element."""
        self._add(element.text)
        mixed: bool | None = None
        for child in element:
            name = name_of(child)
            role = ROLES.get(name, Role.SKIP if not name else None)
            if role is None:
                if mixed is None:
                    mixed = _has_text(element.text) or any(_has_text(other.tail) for other in element)
                role = Role.INLINE if mixed else Role.BLOCK
            self.visit(child, role)
            self._add(child.tail)

    def flush(self) -> None:
        """Ends a block: what has been collected becomes a paragraph, a list item's line or part of a cell."""
        if not self.run:
            return
        text = "".join(self.run)
        self.run = []
        if _EMPTY_LINK in text:
            text = _IN_PARENTHESES.sub("", text).replace(_EMPTY_LINK, "")
        kept, self.kept = self.kept, False
        if kept:
            text = "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
        else:
            text = _AROUND_BREAKS.sub("\n", _BLANKS.sub(" ", text)).strip()
        if not text.strip():
            return
        if self.cell is not None:
            self.cell.append(text.replace("\n", " "))
        elif self.counters:
            indent = "  " * (len(self.counters) - 1)
            marker, self.marker = self.marker or "  ", ""
            self._write(indent + marker + text.replace("\n", f"\n{indent}  "), self.group)
        else:
            self._write(text)

    def _add(self, text: str | None) -> None:
        if not text:
            return
        # A single line is a run of words, as in `<w:t xml:space="preserve"> and</w:t>`.
        if self.preserve and "\n" in text.strip("\n"):
            self.kept = True
            self.run.append(text)
        else:
            self.run.append(_SPACE.sub(" ", text))

    def _write(self, text: str, group: int = 0) -> None:
        self.lines.append((group, text))

    def _list(self, element: Any) -> None:
        self.flush()
        if not self.counters:
            self.group += 1
        kind = name_of(element), element.get("rend"), element.get("list-type")
        self.counters.append(0 if {"ol", "orderedlist", "enumerated"} & set(kind) else None)
        self.children(element)
        self.flush()
        self.counters.pop()

    def _item(self, element: Any) -> None:
        self.flush()
        number = self.counters[-1] if self.counters else None
        if number is not None:
            self.counters[-1] = number + 1
        if self.cell is None:
            self.marker = "- " if number is None else f"{number + 1}. "
        self.children(element)
        self.flush()
        self.marker = ""

    def _table(self, element: Any) -> None:
        self.flush()
        if not self.counters:
            self.group += 1
        outer, self.lone_rows = self.lone_rows, []
        self.columns, columns = False, self.columns
        self.children(element)
        self.flush()
        if self.columns:  # not for layout alone, so the place of a single cell says what it is
            for at, cells in reversed(self.lone_rows):
                count = sum(map(len, cells))
                self.lines[at : at + count] = [(self.lines[at][0], _joined(cells))]
        self.lone_rows, self.columns = outer, columns

    def _row(self, element: Any) -> None:
        if self.cell is not None:  # a table inside a table: its cells are text of the outer one
            self.visit(element, Role.BLOCK)
            return
        self.flush()
        self.row = []
        self.children(element)
        self.flush()
        cells, self.row = self.row, None
        filled = [cell for cell in cells if cell]
        if len(filled) == 1:  # nothing to line up: layout, with paragraphs in it
            if len(cells) > 1:
                self.lone_rows.append((len(self.lines), cells))
            for text in filled[0]:
                self._write(text, self.group)
        elif filled:
            self.columns = True
            self._write(_joined(cells), self.group)

    def _cell(self, element: Any) -> None:
        if self.cell is not None or self.row is None:
            self.visit(element, Role.BLOCK)
            return
        self.flush()
        self.cell = []
        self.children(element)
        self.flush()
        self.row.append(self.cell)
        self.cell = None

    def _code(self, element: Any) -> None:
        text = "".join(_verbatim(element))
        apart = BLOCK_CODE in text
        text = text.replace(BLOCK_CODE, "")
        if self.cell is not None or ("\n" not in text.strip("\n") and not apart):
            self._add(f" {text} " if apart else text)
            return
        self.flush()
        self.marker = ""
        self._write("\n".join(line.rstrip() for line in text.split("\n")).strip("\n"))

    def _link(self, element: Any) -> None:
        address = element.get("target") or element.get("url") or element.get("href")
        if not len(element) and not element.text:
            self.run.append(_EMPTY_LINK)
            return
        if not (self.links and address):
            self.children(element)
            return
        self.run.append("[")
        self.children(element)
        self.run.append(f"]({address})")

    def _note(self, element: Any) -> None:
        self.run.append(" [")
        self._add(" ".join(element.itertext()).strip())
        self.run.append("]")

    def _meaning(self, element: Any) -> None:
        self.run.append(": ")
        self.children(element)

    def _math(self, element: Any) -> None:
        self._add(formula(element))


def _joined(cells: list[list[str]]) -> str:
    return " | ".join(" ".join(cell) for cell in cells).rstrip(" |").lstrip(" ")


def _has_text(text: str | None) -> bool:
    return bool(text) and not (text or "").isspace()


def _verbatim(element: Any) -> Iterable[str]:
    yield element.text or ""
    for child in element:
        role = ROLES.get(name_of(child))
        if role is Role.BREAK:
            yield "\n"
        elif isinstance(child.tag, str):
            yield from _verbatim(child)
        yield child.tail or ""


def formula(element: Any) -> str:
    """MathML as text: `a/b`, `x^2`, `sqrt(x)`; parts with several symbols in parentheses."""
    name = name_of(element)
    parts = [formula(child) for child in element if isinstance(child.tag, str)]
    if name in _OPERATOR and len(parts) == 2:
        return _OPERATOR[name].join(part if len(part) < 2 or part.isalnum() else f"({part})" for part in parts)
    if name == "msqrt":
        return f"sqrt({' '.join(parts)})"
    if name in ("annotation", "annotation-xml"):
        return ""
    own = _SPACE.sub(" ", element.text or "").strip()
    return " ".join(part for part in [own, *parts] if part)

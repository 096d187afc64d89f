"""Finds the text of a record: fields of a row, front matter of a Markdown file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from data_prep.sources.unreadable import concerns_one

EVERYTHING = "*"
_FRONT_MATTER = re.compile(r"---[ \t]*(?:\r\n?|\n)(.*?(?:\r\n?|\n))(?:---|\.\.\.)[ \t]*(?:\r\n?|\n|\Z)", re.DOTALL)
_FRONT_MATTER_CHARACTERS = 65536
_SCALARS = (str, int, float, bool)


def take_text(row: dict[str, Any], fields: Sequence[str]) -> str | None:
    """Takes the text out of a row and puts its pieces together; None where there is none.

    Args:
        row: changed: what is left in it is metadata.
        fields: names, or dotted paths that also go through lists; `*` for every string of the row. A name that is
            there as it stands comes before the path it may be.
    """
    if len(fields) == 1 and isinstance(value := row.get(fields[0]), str):
        del row[fields[0]]
        return value
    pieces: list[str] = []
    for name in fields:
        found = list(_everything(row)) if name == EVERYTHING else list(_at(row, name))
        if found:
            pieces.append("\n".join(found))
    return "\n\n".join(piece for piece in pieces if piece and not piece.isspace()) if pieces else None


def _at(value: Any, path: str) -> Iterator[str]:
    """Strings at the path, taken out of where they were."""
    if isinstance(value, list):
        for item in value:
            yield from _at(item, path)
    elif isinstance(value, dict):
        if path in value:
            found = value[path]
            strings = [_string(found)] if not isinstance(found, list) else [_string(item) for item in found]
            texts = [text for text in strings if text is not None]
            if texts:
                del value[path]
            yield from texts
        else:
            first, dot, rest = path.partition(".")
            if dot and first in value:
                yield from _at(value[first], rest)


def _string(value: Any) -> str | None:
    """Text of a string or of a binary column that holds UTF-8."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            # A lone surrogate marks it as no text, without hiding that the field was there.
            return value[:1024].decode("utf-8", errors="surrogateescape")
    return None


def _everything(value: Any) -> Iterator[str]:
    """Every string, in order, however deep; takes them out."""
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            stack.extend(reversed(item.values()))
        elif isinstance(item, list):
            stack.extend(reversed(item))
    for key in [key for key, item in value.items() if isinstance(item, (str, dict, list))]:
        del value[key]


def split_front_matter(text: str) -> tuple[dict[str, Any], str]:
    """The YAML mapping at the beginning of a Markdown text, and the text without it; what is no such thing stays.

    Only numbers, strings, dates and lists of them are taken into the metadata.
    """
    match = _FRONT_MATTER.match(text[:_FRONT_MATTER_CHARACTERS])
    if match is None:
        return {}, text
    from configs.safety.parsing import parse_yaml

    try:
        values = parse_yaml(match.group(1), twice=True)
        if not isinstance(values, dict):
            return {}, text
        metadata = {str(key): plain for key, value in values.items() if (plain := _plain(value)) is not None}
    except Exception as error:  # also what a value makes Python raise as it is shown
        if not concerns_one(error):
            raise
        return {}, text
    return metadata, text[match.end() :]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [
            item if isinstance(item, _SCALARS) else str(item) for item in value if not isinstance(item, list | dict)
        ]
    if isinstance(value, dict) or value is None:
        return None
    return value if isinstance(value, _SCALARS) else str(value)

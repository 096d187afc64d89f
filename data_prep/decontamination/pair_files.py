"""Reads the pairs of an evaluation set: translations, and any other source with its target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from configs.schema.pair_sets import PairSet
from data_prep.decontamination.chat_sets import read_rows


@dataclass(frozen=True)
class TextPair:
    """A source and its target, such as a sentence and its translation."""

    source: str
    target: str


def is_unicode(text: str) -> bool:
    """Tells whether the text can be written as UTF-8: JSON's escapes can spell half a surrogate pair, which cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def read_all_pairs(section: PairSet) -> list[TextPair]:
    """All pairs of a set, as they stand or with white space evened out.

    Raises:
        ValueError: a missing file, a broken one, or a missing field.
    """
    pairs: list[TextPair] = []
    for row in _rows(section):
        for field in (section.source_field, section.target_field):
            if not isinstance(row.get(field), str):
                raise ValueError(
                    f"{section.called}: item {len(pairs) + 1} of {section.path} has no text in the "
                    f"field `{field}` (its fields: {', '.join(row)}); set source_field and target_field"
                )
            if not is_unicode(row[field]):
                raise ValueError(
                    f"{section.called}: item {len(pairs) + 1} of {section.path} has half of a "
                    f"surrogate pair in the field `{field}`, which is not a character; correct it"
                )
        source, target = row[section.source_field], row[section.target_field]
        if section.normalize == "spaces":
            source, target = " ".join(source.split()), " ".join(target.split())
        pairs.append(TextPair(source, target))
    return pairs


def _rows(section: PairSet) -> Iterator[dict[str, Any]]:
    return read_rows(section.path, section.called, "line", (section.source_field, section.target_field))

"""Reads the pairs of an evaluation set: translations, and any other source with its target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from configs.schema.pair_sets import PairSet
from data_prep.decontamination.chat_sets import read_rows


@dataclass(frozen=True)
class TextPair:
    """A source and its target, such as a sentence and its translation.

    Attributes:
        others: further targets that are as right.
    """

    source: str
    target: str
    others: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """All targets."""
        return (self.target, *self.others)

    @property
    def passages(self) -> tuple[str, ...]:
        """All texts, as decontamination compares them."""
        return (self.source, *self.targets)


def is_unicode(text: str) -> bool:
    """Tells whether the text can be written as UTF-8: JSON's escapes can spell half a surrogate pair, which cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def read_all_pairs(section: PairSet) -> list[TextPair]:
    """All pairs of a set, as they stand or with white space evened out.

    Where a source may have lines, such as the turns of a dialogue, they stay lines.

    Raises:
        ValueError: a missing file, a broken one, or a missing field.
    """
    pairs: list[TextPair] = []
    for row in _rows(section):
        where = f"{section.called}: item {len(pairs) + 1} of {section.path}"
        (source,) = _texts(section, row, section.source_field, where)
        targets = _texts(section, row, section.target_field, where, several=True)
        if section.normalize == "spaces":
            lines = source.strip().splitlines() if section.source_of_lines else [source]
            source = "\n".join(map(_even, lines))
            targets = [_even(text) for text in targets]
        pairs.append(TextPair(source, targets[0], tuple(targets[1:])))
    return pairs


def _texts(section: PairSet, row: dict[str, Any], field: str, where: str, several: bool = False) -> list[str]:
    """The text of a field, or where `several` may stand there, the texts of its list."""
    value = row.get(field)
    listed = value if several and isinstance(value, list) else [value]
    texts = [text for text in listed if isinstance(text, str)]
    if not texts or len(texts) < len(listed):
        raise ValueError(
            f"{where} has no text in the field `{field}` (its fields: {', '.join(row)}); set source_field and "
            "target_field"
        )
    if not all(map(is_unicode, texts)):
        raise ValueError(
            f"{where} has half of a surrogate pair in the field `{field}`, which is not a character; correct it"
        )
    return texts


def _even(text: str) -> str:
    return " ".join(text.split())


def _rows(section: PairSet) -> Iterator[dict[str, Any]]:
    return read_rows(section.path, section.called, "line", (section.source_field, section.target_field))

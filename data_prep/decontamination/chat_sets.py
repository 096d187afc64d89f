"""Reads the evaluation sets of assistants and reward models: prompts with references, and preference pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from configs.safety.parsing import parse_json
from configs.schema.chat import Unit
from configs.schema.evaluation import ChatSet, PeopleSet, PreferenceSet
from data_prep.chat.messages import Message, Pair, Prompt, Unusable
from data_prep.chat.shapes import to_unit
from data_prep.readers import Reading, read_records
from data_prep.sources.places import expand


@dataclass(frozen=True)
class Left:
    """How many records of a set were left out, by reason."""

    reasons: dict[str, int]

    def __str__(self) -> str:
        """`3 records left out: same_answers 2, prompts_differ 1`, or nothing."""
        total = sum(self.reasons.values())
        listed = ", ".join(f"{reason} {count:,}" for reason, count in self.reasons.items())
        return f"{total:,} record{'s' if total > 1 else ''} left out: {listed}" if total else ""


def read_prompts(section: ChatSet, system: str | None) -> tuple[list[Prompt], Left]:
    """Reads the prompts of a set, and counts the records that cannot be one.

    Args:
        section: the set.
        system: text of a system message for prompts that have none; None: no message.

    Raises:
        ValueError: a missing or broken file, or a set without a prompt.
    """
    units, left = _units(section, "prompt", system, f"chat set `{section.name}`")
    return [unit for unit in units if isinstance(unit, Prompt)], left


def read_people_prompts(section: PeopleSet, system: str | None) -> tuple[list[Prompt], Left]:
    """Reads the prompts that people judge the answers of; see `read_prompts`.

    Of the shape `text`, a record is a prompt by its field `prompt` or `text`; a .txt file has one a line.
    """
    what = f"evaluation.people set `{section.name}`"
    if section.shape != "text":
        units, left = _units(section, "prompt", system, what)
        return [unit for unit in units if isinstance(unit, Prompt)], left
    found: list[Prompt] = []
    empty = 0
    for row in _lines(section.path, what) if _is_text(section.path) else read_rows(section.path, what):
        text, reference = row.get("prompt", row.get("text")), row.get("reference")
        if not isinstance(text, str):
            raise ValueError(f"{what}: a record of {section.path} has no text in `prompt` or `text`; correct `shape`")
        if not text.strip():
            empty += 1
        elif section.max_items is None or len(found) < section.max_items:
            right = _whole(reference) if isinstance(reference, str) else None
            found.append(Prompt((Message.of("user", _whole(text)),), right))
    if not found:
        raise ValueError(f"{what}: no prompt in {section.path}")
    return found, Left({"empty": empty} if empty else {})


def _whole(text: str) -> str:
    """Replaces halves of surrogate pairs, such as those of an emoji that was cut, by `?`: no page can show them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _is_text(path: str) -> bool:
    return path.lower().endswith((".txt", ".txt.gz", ".txt.zst"))


def _lines(path: str, what: str) -> Iterator[dict[str, Any]]:
    """Yields each line of text files as a prompt."""
    for file in expand(path):
        for record in read_records(file, Reading(text_documents="line")):
            if not isinstance(record.value, bytes):
                raise ValueError(f"{what}: {file}, line {record.position + 1}, cannot be read ({record.reason})")
            try:
                yield {"prompt": record.value.decode("utf-8")}
            except UnicodeDecodeError:
                raise ValueError(f"{what}: {file}, line {record.position + 1}, is not UTF-8") from None


def read_preferences(section: PreferenceSet, system: str | None) -> tuple[list[Pair], Left]:
    """Reads the pairs of a set, and counts the records that cannot be one; see `read_prompts`."""
    units, left = _units(section, "pair", system, f"preference set `{section.name}`")
    return [unit for unit in units if isinstance(unit, Pair)], left


def _units(
    section: ChatSet | PreferenceSet | PeopleSet, unit: Unit, system: str | None, what: str
) -> tuple[list[Any], Left]:
    found: list[Any] = []
    left: Counter[str] = Counter()
    for record in read_rows(section.path, what):
        if section.max_items is not None and len(found) == section.max_items:
            break
        try:
            found.append(to_unit(record, section.shape, unit, system))
        except Unusable as error:
            left[error.reason] += 1
        except ValueError as error:
            raise ValueError(f"{what}: {error}; correct `shape`") from error
    if not found:
        why = f" ({Left(dict(left))})" if left else ""
        raise ValueError(f"{what}: no {unit} of shape {section.shape} in {section.path}{why}")
    return found, Left(dict(left))


def read_rows(path: str, what: str, counted: str = "record", fields: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """Yields the objects of a set's files.

    Args:
        path: the files.
        what: names the set in messages.
        counted: what messages call one of its records.
        fields: those asked for; a first row of a table that has one names the columns.

    Raises:
        ValueError: for a record that cannot be read or is no object.
    """
    for file in expand(path):
        for record in read_records(file, Reading(fields=fields)):
            where = f"{what}: {file}, {counted} {record.position + 1},"
            if record.value is None:
                raise ValueError(f"{where} cannot be read ({record.reason}: {record.detail})")
            try:
                row = parse_json(record.value) if isinstance(record.value, bytes) else record.value
            except ValueError as error:
                raise ValueError(f"{where} is not valid JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{where} is not an object of fields")
            yield row

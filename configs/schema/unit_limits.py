"""Checks that the data section makes what the objective reads: shapes, the chat tokens, and nothing that would cut."""

from __future__ import annotations

from collections.abc import Iterator

from configs.schema.chat import SERVES, TEMPLATE_TOKENS, Unit
from configs.schema.data import Data


def check_units(data: Data, unit: Unit) -> None:
    """Raises `ValueError` for the first setting of `data` with which no such unit could be made."""
    for problem in _problems(data, unit):
        raise ValueError(problem)


def _problems(data: Data, unit: Unit) -> Iterator[str]:
    for source in data.sources:
        if unit not in SERVES[source.shape]:
            fitting = ", ".join(shape for shape, units in SERVES.items() if unit in units)
            yield (
                f"data.sources `{source.name}`: its records, of shape `{source.shape}`, make "
                f"{' or '.join(map(_plural, SERVES[source.shape]))}, but what is trained reads {_plural(unit)}; "
                f"set `shape` to one of: {fitting}"
            )
    if unit == "document":
        return
    if not set(TEMPLATE_TOKENS) <= set(data.tokenizer.special_tokens):
        yield f"data.tokenizer.special_tokens lacks those that {_plural(unit)} are written with; set it to `chat`"
    cutting = {
        "data.lines": data.lines.boilerplate or data.lines.patterns,
        "data.dedup.lines": data.dedup.lines,
        "data.dedup.substrings": data.dedup.substrings,
    }
    for name, asked in cutting.items():
        if asked:
            yield f"{name} would cut {_plural(unit)}, which stay whole or go; leave it out (data.dedup.near drops them)"


def _plural(unit: Unit) -> str:
    return f"{unit}s"

"""Reads a run's record of numerics: compiled against plain code, and bitwise repeatability."""

from __future__ import annotations

from pathlib import Path

from configs.common.files import read_json

NUMERICS = "numerics.json"  # in a run directory


def numerics_lines(run: Path) -> list[str]:
    """Returns the record's sentences for the report; an empty list where the run has no record."""
    file = run / NUMERICS
    if not file.is_file():
        return []
    record = read_json(file)
    sentences = [str(record.get(key, "")).strip().rstrip(".") for key in ("text", "repeats")]
    return [sentence[0].upper() + sentence[1:] + "." for sentence in sentences if sentence]

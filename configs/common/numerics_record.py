"""What a run says of its numbers, as training leaves it for the report."""

from __future__ import annotations

from pathlib import Path

from configs.common.files import read_json

NUMERICS = "numerics.json"  # in a run directory


def numerics_lines(run: Path) -> list[str]:
    """How fast code compared with plain code, and whether the run repeats bit for bit; none where nothing was said."""
    file = run / NUMERICS
    if not file.is_file():
        return []
    said = read_json(file)
    sentences = [str(said.get(key, "")).strip().rstrip(".") for key in ("text", "repeats")]
    return [sentence[0].upper() + sentence[1:] + "." for sentence in sentences if sentence]

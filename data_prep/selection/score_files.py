"""Defines the files that `replica score` writes and `data.select` reads: code lengths of documents.

A document is known by the hash of its text. Its id is there for people.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from configs.schema.selection import Select
from data_prep.sources.places import expand

_KEY = b"replica_scores"
_FORMAT = 1
MODELS = ("scores", "minus")  # settings that name files
_NEEDED = ("hash", "nats")
_AGAIN = "write it again by `replica score`"


@dataclass(frozen=True)
class ScoredBy:
    """What scored the documents of a file; two files fit together when it is equal.

    Attributes:
        checkpoint: fingerprint.
        tokenizer: fingerprint.
        settings: the convention of the score: context, new tokens per window, precision.
        version: of this project, for people.
        run: name of the run and its step, for people.
    """

    checkpoint: str
    tokenizer: str
    settings: dict[str, Any]
    version: str
    run: str

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the scores."""
        return {"checkpoint": self.checkpoint, "tokenizer": self.tokenizer, "settings": self.settings}


def hash_of_text(text: str) -> str:
    """32 hexadecimal digits: BLAKE2b of the UTF-8 text, 128 bits."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def schema_of(scored_by: ScoredBy) -> pa.Schema:
    """The columns of a file, with what scored it as metadata."""
    columns = [
        ("id", pa.string()),
        ("source", pa.string()),  # of the recipe; null for files
        ("file", pa.string()),
        ("hash", pa.string()),
        ("nats", pa.float64()),
        ("tokens", pa.int64()),
        ("bytes", pa.int64()),  # of the text as UTF-8
        ("characters", pa.int64()),
        ("bits_per_byte", pa.float64()),
    ]
    content = json.dumps({"format": _FORMAT, **asdict(scored_by)}, sort_keys=True)
    return pa.schema(columns, metadata={_KEY: content.encode()})


def read_scored_by(file: Path) -> ScoredBy:
    """Reads what scored a file.

    Raises:
        ValueError: when it is not a file that `replica score` wrote.
    """
    try:
        schema = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file} is not a whole Parquet file ({error}); {_AGAIN}") from error
    try:
        content = json.loads((schema.metadata or {})[_KEY])
        if content.pop("format") != _FORMAT:
            raise ValueError(f"{file} has another format; {_AGAIN}")
        found = ScoredBy(**content)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} has no scores of `replica score`; {_AGAIN}") from error
    if missing := [name for name in _NEEDED if name not in schema.names]:
        raise ValueError(f"{file} lacks the column `{missing[0]}`; {_AGAIN}")
    return found


def read_common(files: Sequence[Path], setting: str) -> ScoredBy | None:
    """Reads what scored all files; None for no file.

    Raises:
        ValueError: when two files have scores of different models or settings; see also `read_scored_by`.
    """
    found = [read_scored_by(file) for file in files]
    for file, one in zip(files[1:], found[1:], strict=True):
        differing = [key for key, value in one.identity.items() if found[0].identity[key] != value]
        if differing:
            raise ValueError(
                f"{setting}: {files[0]} ({found[0].run}) and {file} ({one.run}) differ in {', '.join(differing)}; give "
                "files of one model, scored alike"
            )
    return found[0] if found else None


def scored_by(settings: Select) -> dict[str, ScoredBy]:
    """Reads what scored the files of the recipe, by the name of the setting.

    Raises:
        ValueError: when a file is missing or has no scores, when files of one setting do not fit together, or when
            both settings have the same model.
    """
    found = {name: read_common(located(getattr(settings, name), f"data.select.{name}"), f"data.select.{name}")
             for name in MODELS}  # fmt: skip
    first, second = found.values()
    if first is not None and second is not None and first.checkpoint == second.checkpoint:  # in whatever precision
        raise ValueError(
            f"data.select: `scores` and `minus` are both by {first.run}, so their differences would be 0 or noise; "
            "give scores of another model as `minus`, or leave it out"
        )
    if first is not None and second is not None and ("bound" in first.settings) != ("bound" in second.settings):
        masked = first if "bound" in first.settings else second
        raise ValueError(
            f"data.select: {masked.run} is a masked model, whose scores are upper bounds. The other one is exact, "
            "so their differences would depend on how loose the bounds are; give two models of one kind"
        )
    return {name: one for name, one in found.items() if one is not None}


def located(paths: Sequence[str], setting: str) -> list[Path]:
    """Returns the files that a setting names, globs in order.

    Raises:
        ValueError: when there are none.
    """
    try:
        found = expand(list(paths)) if paths else []
    except ValueError as error:
        missing = str(error).partition(": no such file")[0]
        raise ValueError(
            f"{setting}: there is no file {missing}; write it by `replica score RUN --data RECIPE --out FILE.parquet`"
        ) from error
    files = [place for place in found if isinstance(place, Path)]
    if len(files) < len(found):
        raise ValueError(f"{setting}: give files of this machine, not URLs; fetch them first")
    return files

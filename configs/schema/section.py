"""What every section of the recipe is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


@dataclass(frozen=True)
class PathMarker:
    """Marks a string setting as a path: relative ones are resolved against where they were written.

    A `pattern` may hold globs; the directory that it is resolved against is none, whatever signs its name has.
    """

    pattern: bool = False


PathText = Annotated[str, PathMarker(), Field(min_length=1)]
PatternText = Annotated[str, PathMarker(pattern=True), Field(min_length=1)]

CodeText = Annotated[str, PathMarker(), Field(pattern=r"\.py:[A-Za-z_][A-Za-z0-9_]*$")]


class Section(BaseModel):
    """Base of every section: strict types, finite numbers, no unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True, allow_inf_nan=False)


class Custom(Section):
    """Python code of your own. It runs when `--trust DIR` names its directory (docs/custom-code.md)."""

    code: CodeText = Field(description="`FILE.py:NAME`, a function or class in a file.")
    options: dict[str, Any] = Field({}, description="Keyword arguments that it is given.")

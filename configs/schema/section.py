"""Defines the base class and the path types that all sections of the recipe use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


@dataclass(frozen=True)
class PathMarker:
    """Marks a string setting as a path. Relative paths are resolved against the file or directory they come from.

    A `pattern` may contain globs. The directory it is resolved against is taken literally.
    """

    pattern: bool = False


PathText = Annotated[str, PathMarker(), Field(min_length=1)]
PatternText = Annotated[str, PathMarker(pattern=True), Field(min_length=1)]

CodeText = Annotated[str, PathMarker(), Field(pattern=r"\.py:[A-Za-z_][A-Za-z0-9_]*$")]


class Section(BaseModel):
    """Base class of every section: strict types, finite numbers, no unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True, allow_inf_nan=False)


class Custom(Section):
    """Custom Python code. It runs only if `--trust DIR` names its directory (docs/custom-code.md)."""

    code: CodeText = Field(description="`FILE.py:NAME`, a function or class in a file.")
    options: dict[str, Any] = Field({}, description="Keyword arguments for it.")

"""Defines the base class and the path types that all sections of the recipe use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


@dataclass(frozen=True)
class PathMarker:
    """Marks a string setting as a path. Relative paths are resolved against the file or directory they come from.

    A `pattern` may contain globs. The directory it is resolved against is taken literally.
    """

    pattern: bool = False


PathText = Annotated[str, PathMarker(), Field(min_length=1)]
PatternText = Annotated[str, PathMarker(pattern=True), Field(min_length=1)]

CodeText = Annotated[str, PathMarker(), Field(pattern=r"\.py:[A-Za-z_][A-Za-z0-9_]*$")]


# Scores are named `perplexity/NAME/…`, and gates separate names by blanks.
SetName = Annotated[str, Field(pattern=r"^[^\s/]+$", description="Name used in its scores; no blanks, no `/`.")]


def _unicode(text: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # YAML's escapes can spell it
        raise ValueError("it contains half of a surrogate pair, which is not a character; remove it")
    return text


UnicodeText = Annotated[str, AfterValidator(_unicode)]


class Section(BaseModel):
    """Base class of every section: strict types, finite numbers, no unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True, allow_inf_nan=False)


class Custom(Section):
    """Custom Python code. It runs only if `--trust DIR` names its directory (docs/custom-code.md)."""

    code: CodeText = Field(description="`FILE.py:NAME`, a function or class in a file.")
    options: dict[str, Any] = Field({}, description="Keyword arguments for it.")

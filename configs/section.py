"""What every section of the recipe is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict


class PathMarker:
    """Marks a string setting as a path: relative ones are resolved against where they were written."""


PathText = Annotated[str, PathMarker()]


class Section(BaseModel):
    """Base of every section: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True)

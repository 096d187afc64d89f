"""Defines the section of coded files in the evaluation; see docs/compression.md."""

from __future__ import annotations

from pydantic import Field

from configs.schema.section import Section


class Compression(Section):
    """Sets that are coded to a file by the model, as `replica compress` does; see docs/compression.md."""

    codec: list[str] = Field(
        [], description="Names of perplexity sets. Coding takes a step of the model for each token."
    )
    verify: bool = Field(True, description="Decode each file again and compare, which takes as long as coding.")

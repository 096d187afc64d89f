"""Defines how a masked model fills in masks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from configs.schema.section import Section


class Denoising(Section):
    """How a masked model (`train.objective: {kind: masked_diffusion}`) writes text. Other models ignore it."""

    steps: int | None = Field(
        None,
        ge=1,
        description="Forward passes for all masks of a text. With fewer passes than masks several tokens are drawn at "
        "a time, as if they did not depend on each other. null: one pass for each token.",
    )
    order: Literal["confidence", "random"] = Field(
        "confidence",
        description="confidence: draw a token for each mask, and keep the likeliest. random: draw the order too.",
    )
    block: int = Field(32, ge=1, description="Fill in so many masks before any to their right.")

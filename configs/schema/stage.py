"""Defines the recipe's `stages`: training that goes on from a stage before, each a run of its own."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from configs.schema.objectives import Objective
from configs.schema.section import Section


class Stage(Section):
    """One stage after the base. Settings that it leaves out are the recipe's (docs/assistant.md)."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$", description="Name of the stage and of its directory.")
    parent: str | None = Field(
        None, alias="from", description="Stage whose weights it starts from; null: the one before, or `base`."
    )
    objective: Objective = Field(description="What is trained; see `train.objective`.")
    data: dict[str, Any] = Field(
        {}, description="Settings of `data`; `{like: STAGE}` takes another stage's prepared data."
    )
    model: dict[str, Any] = Field({}, description="Settings of `model` that need no other weights, such as dropout.")
    train: dict[str, Any] = Field({}, description="Settings of `train`, with the length of this stage.")

"""Checks what an objective needs of the rest of a recipe."""

from __future__ import annotations

from configs.schema.model import Model
from configs.schema.objectives import unit_of
from configs.schema.train import Train


def check_objective(model: Model, train: Train) -> None:
    """Raises `ValueError`, naming setting and fix, where the objective cannot be trained with other settings."""
    unit = unit_of(train.objective)
    if unit not in ("pair", "prompt"):
        return
    kind = getattr(train.objective, "kind", "")
    excluded = [
        (
            "train.parallel.sequence",
            train.parallel.sequence > 1,
            "its loss is no sum over slices of rows; set it to 1",
        ),
        (
            "train.parallel.tensor",
            train.parallel.tensor > 1 and unit == "prompt",
            "answers are drawn from whole matrices; set it to 1",
        ),
        (
            "model.dropout",
            model.dropout > 0,
            "log-probabilities and scores of the same weights must be equal from one pass to the next; set it to 0",
        ),
        (
            "train.precision fp8",
            train.precision == "fp8",
            "its rows have many lengths, and fp8 needs multiples of 16; use bf16",
        ),
    ]
    if problems := [f"{what}: {reason}" for what, given, reason in excluded if given]:
        raise ValueError(f"train.objective of kind {kind} cannot be combined with {'; or with '.join(problems)}")

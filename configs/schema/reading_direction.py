"""Settles whether a model is causal, and refuses what one cannot do that reads both ways (`model.causal: false`)."""

from __future__ import annotations

from typing import Any

from configs.schema.model import Model


def needs_causal(model: Model, what: str) -> None:
    """Raises `ValueError` when the model is not causal.

    Args:
        model: the section of the recipe.
        what: what was asked for, as the start of a sentence, such as "`replica compress`".
    """
    if not model.causal:
        raise ValueError(
            f"{what} needs a model that predicts each token from those before it, but this one reads both ways "
            "(model.causal: false, which `train.objective: {kind: masked_diffusion}` trains); use a model trained "
            "without that objective. docs/any-order.md says what a masked model can do"
        )


def with_direction(values: Any) -> Any:
    """The raw recipe with `model.causal: false` where its objective is masked diffusion and it does not say."""
    if not isinstance(values, dict) or not isinstance(model := values.get("model"), dict):
        return values
    train = values.get("train")
    objective = train.get("objective") if isinstance(train, dict) else None
    kind = objective.get("kind") if isinstance(objective, dict) else getattr(objective, "kind", None)
    return {**values, "model": {"causal": False, **model}} if kind == "masked_diffusion" else values

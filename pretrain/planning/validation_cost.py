"""Predicts what validation and evaluation add to the time of training."""

from __future__ import annotations

from typing import Any

from configs.common.layout import MANIFEST
from configs.schema.objectives import MaskedDiffusion, unit_of
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import load_manifest

_FORWARD = 1 / 3  # of the operations of a training step
_MUCH = 0.1  # of the time of training


def validation_cost(recipe: Recipe, steps: int | None, tokens_per_s: float) -> dict[str, Any]:
    """Predicts the number of validations and evaluations, and the seconds of each.

    A validation is a forward pass over its tokens at training's speed. An evaluation takes as long as it may at most:
    how long its items are, is known only when they are read.

    Args:
        recipe: the recipe of one stage.
        steps: updates of the run; None if they depend on the data.
        tokens_per_s: of training.
    """
    policy = recipe.train.validation
    tokens = policy.max_tokens
    if (recipe.data_directory / MANIFEST).is_file():
        tokens = min(tokens, sum(source.tokens for source in load_manifest(recipe.data_directory).validation))
    objective = recipe.train.objective
    passes = objective.validation_draws if isinstance(objective, MaskedDiffusion) else 1
    # Answers are drawn for prompts, which takes another time than reading them.
    seconds = None if unit_of(objective) == "prompt" else passes * tokens * _FORWARD / tokens_per_s
    parts = policy.evaluation.parts
    return {
        "tokens": tokens,
        "seconds_each": seconds,
        "times": None if steps is None else _times(steps, policy.every),
        "parts": list(parts),
        "evaluation_seconds_at_most": policy.evaluation.max_seconds if parts else 0.0,
        "evaluation_times": None if steps is None or not parts else _times(steps, policy.evaluation_every),
    }


def _times(steps: int, every: int) -> int:
    """The last step counts too."""
    return -(-steps // every)


def cost_warning(cost: dict[str, Any], training_seconds: float) -> list[str]:
    """Returns a warning if measuring may take much of the time of training."""
    total = total_seconds(cost)
    if total is None or total < _MUCH * training_seconds:
        return []
    share = total / training_seconds
    return [f"measuring may take {share:.0%} of the time of training; raise `every` in train.validation"]


def total_seconds(cost: dict[str, Any]) -> float | None:
    """All seconds at most; None where the number of steps is not known."""
    if cost["times"] is None:
        return None
    evaluations = (cost["evaluation_times"] or 0) * cost["evaluation_seconds_at_most"]
    return float(cost["times"] * (cost["seconds_each"] or 0.0) + evaluations)

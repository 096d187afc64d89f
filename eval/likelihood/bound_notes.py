"""Says of the scores of a masked model that their log-likelihoods are bounds, and from how many draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from configs.schema.recipe import Recipe
from eval.results import Result

# Kinds of scores that are made of log-likelihoods; a task of lm-eval may be, and says so itself.
_KINDS = ("perplexity", "information", "conversations")


def bound_inputs(recipe: Recipe) -> dict[str, Any]:
    """Returns what affects the scores of a masked model beside those of any."""
    if recipe.model.causal:
        return {}
    section = recipe.evaluation
    draws = {"draws": section.bound_draws, "seed": recipe.seed}
    return {"bound": draws, "denoising": section.denoising.model_dump(mode="json")}


def bound_noted(recipe: Recipe, results: Sequence[Result]) -> list[Result]:
    """Returns scores with a note where they are bounds; those of a causal model as they are."""
    if recipe.model.causal:
        return list(results)
    draws = recipe.evaluation.bound_draws
    notes = dict.fromkeys(_KINDS, f"upper bound, {draws} draws")
    notes["benchmark"] = f"log-likelihoods, if the task takes any, are upper bounds of nats, {draws} draws"
    return [
        replace(one, note="; ".join(filter(None, [notes[one.named.kind], one.note])))
        if one.named.kind in notes
        else one
        for one in results
    ]

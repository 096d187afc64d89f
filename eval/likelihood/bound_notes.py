"""Says of the scores of a masked model that their log-likelihoods are bounds, and from how many draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from configs.schema.recipe import Recipe
from eval.results import BOUND, OF_BOUNDS, Result, ScoreName

# Kinds of scores that are made of log-likelihoods; a task of lm-eval may be, and says so itself.
# Of these, what grows with the nats alone; a difference or a choice of bounds is no bound.
_LENGTHS = (
    *("bits_per_byte", "perplexity", "nats_per_token", "word_perplexity", "byte_perplexity"),
    *("alone_bits", "given_bits", "other_bits"),
)
_KINDS = ("perplexity", "information", "conversations")
_KEPT = "kept_information"  # of summaries, whose other scores are of text


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
    draws = f"{recipe.evaluation.bound_draws} draws"

    def note(score: ScoreName) -> str | None:
        if score.kind == "benchmark":
            return f"log-likelihoods, if the task takes any, are upper bounds of nats, {draws}"
        if score.kind not in _KINDS and not (score.metric or "").endswith(_KEPT):
            return None
        return f"{BOUND}, {draws}" if score.metric in _LENGTHS else f"{OF_BOUNDS}, {draws}"

    return [replace(one, note="; ".join(filter(None, [note(one.named), one.note])) or None) for one in results]

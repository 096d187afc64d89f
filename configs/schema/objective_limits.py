"""Checks what an objective needs of the rest of a recipe."""

from __future__ import annotations

from configs.schema.chat import MASK
from configs.schema.data import Data
from configs.schema.model import Model
from configs.schema.objectives import MaskedDiffusion, unit_of
from configs.schema.train import Train


def check_objective(model: Model, train: Train) -> None:
    """Raises `ValueError`, naming setting and fix, where the objective cannot be trained with other settings."""
    unit = unit_of(train.objective)
    _check_direction(model, train)
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


def _check_direction(model: Model, train: Train) -> None:
    """A model that reads both ways needs the objective that hides its targets, and that objective such a model."""
    masked = isinstance(train.objective, MaskedDiffusion)
    if masked and model.causal:
        raise ValueError(
            "train.objective of kind masked_diffusion predicts from both sides, but model.causal is true; leave "
            "model.causal out, the objective sets it"
        )
    if not masked and not model.causal:
        raise ValueError(
            "with model.causal: false a token sees those after it, so a model would read what it is to predict; set "
            "train.objective: {kind: masked_diffusion}, which hides it, or leave model.causal out"
        )
    if masked and train.packing == "best_fit" and not train.document_masking:
        raise ValueError(
            "train.objective of kind masked_diffusion with train.packing: best_fit would see the padding, and so where "
            "a document ends; set train.document_masking: true, or train.packing: stream"
        )


def check_mask_token(data: Data, train: Train) -> None:
    """Raises `ValueError` when masked diffusion has no token that stands for what it hides."""
    tokens = data.tokenizer.special_tokens
    if isinstance(train.objective, MaskedDiffusion) and MASK not in tokens[1:]:
        listed = ", ".join(f'"{token}"' for token in (*(token for token in tokens if token != MASK), MASK))
        raise ValueError(
            f"train.objective of kind masked_diffusion hides tokens behind {MASK}, which "
            f"data.tokenizer.special_tokens lacks; set it to [{listed}]. A vocabulary from a file gets the token at "
            "its end"
        )

"""Lists the settings that decide the weights: all except those named here.

A new setting is therefore decisive by default. A run that was trained with another value of a decisive setting does
not count as a run of this recipe.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from configs.safety.hide_secrets import mask
from configs.schema.paths import is_path
from configs.schema.recipe import Recipe

# Paths, ranks, memory, logs, retention and evaluation. The dial is free because its derived values are compared; data
# files are free because the fingerprint of the data is compared.
FREE = (
    "name", "out", "evaluation", "report", "stages", "parents",
    "data.directory", "data.workers", "data.ray_address", "data.preset", "data.keep_dropped", "data.limits.attempts",
    "data.sources.N.storage_options", "data.sources.N.licence",
    "model.depth", "model.size", "train.tokens_per_parameter",
    "train.micro_batch_size", "train.zero", "train.parallel", "train.ranks", "train.activation_checkpointing",
    "train.loss_chunk", "train.compile", "train.deterministic",
    # Paths; `pretrain.checkpoint.compatible` compares the text of the code.
    "train.objective.code", "train.objective.rewards.custom.N.code",
    "train.watch", "train.checkpoint", "train.validation", "train.log_every", "train.tensorboard", "train.wandb",
)  # fmt: skip
# The number of steps is compared as a number, whichever of these keys gives it.
LENGTH = ("train.steps", "train.tokens", "train.epochs")
# These act on future steps only, so they may change while steps remain.
AHEAD = (
    "train.optimizer", "train.schedule", "train.grad_clip", "train.precision", "train.faults", "deepspeed",
    "data.mixture", "data.sources.N.weight", "data.sources.N.max_epochs",
)  # fmt: skip
_EVER = ("train.optimizer.name",)  # its moments are in the checkpoint
_UNSET = "(not set)"


def _under(path: str, prefixes: tuple[str, ...]) -> bool:
    general = ".".join("N" if part.isdigit() else part for part in path.split("."))
    return any(general == prefix or general.startswith(prefix + ".") for prefix in prefixes)


def acts_ahead(path: str) -> bool:
    """Tells whether a decisive setting acts on future steps only, so that a continued run may change it."""
    return _under(path, AHEAD) and not _under(path, _EVER)


def decisive(recipe: Recipe) -> dict[str, Any]:
    """Maps dotted path to value for every setting that decides the weights, except the number of steps."""
    values: dict[str, Any] = {}
    _collect(recipe, "", values)
    return values


def _collect(section: BaseModel, prefix: str, found: dict[str, Any]) -> None:
    for name, field in type(section).model_fields.items():
        path = f"{prefix}{name}"
        if _under(path, FREE + LENGTH) or (path.startswith("data.") and is_path(field)):
            continue
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            _collect(value, f"{path}.", found)
        elif isinstance(value, list) and any(isinstance(item, BaseModel) for item in value):
            for number, item in enumerate(value):
                _collect(item, f"{path}.{number}.", found)
        else:
            found[path] = mask(value)  # a checkpoint must not contain secrets, and they do not affect weights


def changed_settings(before: Recipe, now: Recipe) -> dict[str, tuple[Any, Any]]:
    """Maps dotted path to (before, now) for every decisive setting that differs."""
    old, new = decisive(before), decisive(now)
    pairs = {path: (old.get(path, _UNSET), new.get(path, _UNSET)) for path in old | new}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}

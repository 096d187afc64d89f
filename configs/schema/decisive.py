"""Which settings decide the weights: all of them, but for those that are named here.

A new setting therefore counts as decisive until somebody says otherwise, and a run that was trained with another value
of it is never taken for one of this recipe.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from configs.safety.hide_secrets import mask
from configs.schema.recipe import Recipe, is_path

# Places, ranks and memory, logs, what is kept and what is scored. Of the dial what follows from it counts; of the
# files that data is made of, the fingerprint of the data.
FREE = (
    "name", "out", "evaluation", "report",
    "data.directory", "data.workers", "data.ray_address", "data.preset", "data.keep_dropped", "data.limits.attempts",
    "data.sources.N.storage_options", "data.sources.N.licence",
    "model.depth", "model.size", "train.tokens_per_parameter",
    "train.micro_batch_size", "train.zero", "train.parallel", "train.ranks", "train.activation_checkpointing",
    "train.loss_chunk", "train.compile", "train.deterministic",
    "train.objective.code",  # where it lies; what it says is compared by `pretrain.checkpoint.compatible`
    "train.watch", "train.checkpoint", "train.validation", "train.log_every", "train.tensorboard", "train.wandb",
)  # fmt: skip
# The number of steps: judged as a number, whatever unit it was given in.
LENGTH = ("train.steps", "train.tokens", "train.epochs")
# Act on steps to come, so they may change as long as there are any.
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
    """Whether a decisive setting acts on steps to come alone, so that a run that goes on may have it changed."""
    return _under(path, AHEAD) and not _under(path, _EVER)


def decisive(recipe: Recipe) -> dict[str, Any]:
    """Dotted path -> value of every setting that decides the weights, their number of steps apart."""
    found: dict[str, Any] = {}
    _collect(recipe, "", found)
    return found


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
            found[path] = mask(value)  # a checkpoint holds no secrets, and they decide nothing


def changed_settings(before: Recipe, now: Recipe) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> both values of every decisive setting that differs."""
    old, new = decisive(before), decisive(now)
    pairs = {path: (old.get(path, _UNSET), new.get(path, _UNSET)) for path in old | new}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}

"""Says what decides a coded corpus beside its text, and what keeps one from being made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch

from configs.common.files import fingerprint
from configs.common.versions import installed
from configs.schema.decisive import decisive
from configs.schema.recipe import Recipe
from pretrain.engine.engine import Engine
from pretrain.numerics.circumstances import circumstances
from pretrain.numerics.repeatable import is_deterministic

_NAMED = 4  # differences in a message
_LIBRARY = "constriction"


def refuse_recipe(recipe: Recipe) -> None:
    """Raises `ValueError` for settings with which a corpus cannot be coded by training, all of them named."""
    train = recipe.train
    wrong = {
        "train.objective: only language modelling codes its text": train.objective is not None,
        "train.packing=best_fit: the windows depend on the documents; use stream": train.packing != "stream",
        "train.init_from: the file would need those weights": train.init_from is not None,
        "train.ranks and train.parallel: one rank codes": (train.ranks or 1) > 1 or train.parallel.sharing > 1,
        "train.faults.action=rewind: what is coded cannot be taken back; use skip or stop": (
            train.faults.action == "rewind"
        ),
        "train.checkpoint.mirror: coding cannot go on from a checkpoint": train.checkpoint.mirror is not None,
        "train.deterministic=false: the decoder could not repeat the training": train.deterministic is False,
    }
    problems = [text for text, is_wrong in wrong.items() if is_wrong]
    if problems:
        listed = "\n".join(f"  - {text}" for text in problems)
        raise ValueError(f"training with these settings of {recipe.name} cannot code its corpus\n{listed}")


def refuse_engine(recipe: Recipe, engine: Engine) -> None:
    """Raises `ValueError` for a device, a number of ranks or a dtype of weights that is not supported."""
    if engine.ranks.count > 1:
        raise ValueError(f"one rank codes a corpus, and {engine.ranks.count} were started; use --ranks 1")
    if engine.device.type != "cpu":
        raise ValueError(
            "coding a corpus works on a CPU only: that training repeats to the bit on this device is not measured; "
            "hide it (CUDA_VISIBLE_DEVICES=)"
        )
    if not is_deterministic(recipe.train, engine.device):
        raise ValueError("coding needs train.deterministic; leave it at auto")
    dtype = next(engine.module.parameters()).dtype
    if dtype != torch.float32 or engine.stage == 3:
        raise ValueError(
            f"the weights are in {str(dtype).removeprefix('torch.')} at ZeRO stage {engine.stage}, and coding needs "
            "all of them in float32; use train.zero.stage=0"
        )


def settings(recipe: Recipe, steps: int) -> dict[str, Any]:
    """The settings that decide the weights, by their path, in JSON's types."""
    found: dict[str, Any] = json.loads(json.dumps(decisive(recipe), default=str))
    return {**found, "the number of steps": steps}


def made_by(recipe: Recipe, engine: Engine) -> dict[str, Any]:
    """Hardware, software and ways of computing, by group; the model itself is among the settings."""
    found = circumstances(recipe, engine)
    found["settings"].pop("model")
    features = {name: found["hardware"].pop(name, "") for name in ("flags", "Features")}
    found["hardware"]["features"] = fingerprint(features)[:16]
    found["software"][_LIBRARY] = installed(_LIBRARY) or "none"
    made: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return made


def refuse_other(what: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises `ValueError` where two descriptions differ, naming the values; `what` says where it must be put right."""
    was, is_now = dict(_flat(before)), dict(_flat(now))
    different = [name for name in was | is_now if was.get(name) != is_now.get(name)]
    if not different:
        return
    listed = "; ".join(
        f"{name} was {_short(was.get(name))}, here it is {_short(is_now.get(name))}" for name in different[:_NAMED]
    )
    more = f"; and {len(different) - _NAMED} more" if len(different) > _NAMED else ""
    threads = next((was[name] for name in different if name.endswith("threads")), None)
    hint = "" if threads is None else f" (OMP_NUM_THREADS={threads} gives as many threads)"
    raise ValueError(f"the file was written with {what}: {listed}{more}{hint}")


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 80 else text[:77] + "…"

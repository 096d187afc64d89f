"""Makes a stage's own recipe from the recipe that contains it: what it inherits, what it sets, what it must not set.

A stage inherits how the run computes (precision, ZeRO, optimizer) and how text is read and protected. It does not
inherit what was chosen for the base's corpus and length: sources, filters, mixture, steps, schedule.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.common.layout import STAGES, TOKENIZER
from configs.schema.chat import CHAT_TOKENS, END_OF_TEXT, MASK
from configs.schema.objectives import (
    MaskedDiffusion,
    ProximalPolicy,
    Reinforcement,
    RewardModelling,
    Supervised,
    unit_of,
)
from configs.schema.presets import merged
from configs.schema.stage import Stage

BASE = "base"  # names the run of the recipe itself
# Of `model`, settings that no weight depends on, or that only pad the vocabulary.
_MODEL = ("context_length", "rope_scaling", "rope_theta", "dropout", "vocab_size", "vocab_multiple")
_DATA_INHERITED = (
    "extract", "normalize", "privacy", "limits", "decontaminate", "keep_dropped", "max_document_bytes", "unit_bytes",
    "shard_tokens", "workers", "ray_address",
)  # fmt: skip
_TRAIN_OWN = (
    "steps", "tokens", "epochs", "tokens_per_parameter", "init_from", "objective", "micro_batch_size", "packing",
    "document_masking", "schedule",
)  # fmt: skip
_SHORT = 100  # steps between checkpoints of a stage that says nothing about it
Where = tuple[str | int, ...]


def parent_name(stages: Sequence[Stage], index: int) -> str:
    """Returns the name of the stage, or `base`, whose weights a stage starts from."""
    return stages[index].parent or (stages[index - 1].name if index else BASE)


def stages_needed(stages: Sequence[Stage], index: int) -> dict[str, Where]:
    """Maps each stage whose weights this one reads to the setting that names it; the first is its policy's parent."""
    needed: dict[str, Where] = {parent_name(stages, index): ("from",)}
    objective = stages[index].objective
    if isinstance(objective, Reinforcement) and objective.rewards.model is not None:
        needed.setdefault(objective.rewards.model.stage, ("objective", "rewards", "model", "stage"))
    if isinstance(objective, ProximalPolicy) and objective.critic_from is not None:
        needed.setdefault(objective.critic_from, ("objective", "critic_from"))
    return needed


# ------------------------------------------------------------------------------------------------------------- problems
def stage_problems(stages: Sequence[Stage], index: int, values: Mapping[str, Any]) -> Iterator[tuple[Where, str]]:
    """Yields (path within the stage, message) of what no schema of a single section can tell.

    `values`: the raw recipe.
    """
    train, data = _section(values, "train"), _section(values, "data")
    stage, before = stages[index], [BASE, *(stage.name for stage in stages[:index])]
    if stage.name in before:
        why = "means the run of the recipe itself" if stage.name == BASE else "is the name of another stage"
        yield ("name",), f"`{stage.name}` {why}; choose another name"
    later = [one.name for one in stages[index:]]
    for name, path in stages_needed(stages, index).items():
        if name not in before:
            why = "comes later" if name in later[1:] else "is this stage" if name == stage.name else "is no stage"
            yield path, f"`{name}` {why}; a stage needs one that comes before it: {', '.join(before)}"
    yield from _kinds_fit(stages, index, train)
    yield from _data_problems(stages, index, before, data)
    for key, instead in (("objective", "objective"), ("init_from", "from")):
        if key in stage.train:
            yield ("train", key), f"say it as `{instead}` of the stage; leave it out here"
    for key in stage.model:
        if key not in _MODEL:
            yield ("model", key), f"a stage has the base's model; it may set {', '.join(_MODEL)} alone"
    yield from _muon_problems(stage, train)


def is_masked(stage: Stage) -> bool:
    """Tells whether a stage trains masked diffusion, from any base; its model then reads both ways."""
    return isinstance(stage.objective, MaskedDiffusion)


def _kinds_fit(stages: Sequence[Stage], index: int, train: Mapping[str, Any]) -> Iterator[tuple[Where, str]]:
    stage, known = stages[index], {one.name: one for one in stages[:index]}
    reward = known.get(parent_name(stages, index))
    why = "trains masked diffusion, whose model reads both ways, and this objective needs a causal one"
    if reward is not None and is_masked(reward) and not is_masked(stage):
        yield ("from",), f"`{reward.name}` {why}; say which stage it starts from, such as {BASE}"
    if _section(train, "objective").get("kind") == "masked_diffusion" and not is_masked(stage):
        yield ("objective",), f"the recipe's own run {why}; leave out train.objective, or this stage"
    if stage.parent is None and reward is not None and isinstance(reward.objective, RewardModelling):
        yield (
            ("from",),
            f"the stage before, `{reward.name}`, trains a reward model; say which stage this one starts from",
        )
    objective = stage.objective
    critic = known.get(objective.critic_from or "") if isinstance(objective, ProximalPolicy) else None
    if critic is not None and is_masked(critic):
        yield ("objective", "critic_from"), f"`{critic.name}` {why}; name another stage, or leave it out"
    if isinstance(objective, Reinforcement) and objective.rewards.model is not None:
        named = known.get(objective.rewards.model.stage)
        if named is not None and not isinstance(named.objective, RewardModelling):
            path = ("objective", "rewards", "model", "stage")
            yield path, f"`{named.name}` trains no reward model; name a stage of kind `reward`"


def _data_problems(
    stages: Sequence[Stage], index: int, before: list[str], base: Mapping[str, Any]
) -> Iterator[tuple[Where, str]]:
    stage = stages[index]
    if "tokenizer" in stage.data:
        yield ("data", "tokenizer"), "a stage reads with the base's tokenizer; leave it out"
    if "like" not in stage.data:
        return
    path, like = ("data", "like"), stage.data["like"]
    if len(stage.data) > 1:
        yield path, f"it takes all settings of another stage's data; leave out {', '.join(_others(stage.data))}"
    if like not in before:
        yield path, f"`{like}` is no stage before this one; name one of {', '.join(before)}"
        return
    units = unit_of(_objective_of(stages, str(like))), unit_of(stage.objective)
    if units[0] != units[1]:
        yield path, f"the data of `{like}` is made of units `{units[0]}`, but this objective reads `{units[1]}`"
    contexts = [one.model.get("context_length") for one in stages if one.name in (like, stage.name)]
    if like != BASE and contexts[0] != contexts[1]:
        yield path, f"`{like}` has another model.context_length, on which the data depends; make them the same"
    longest = [_longest_answer(_objective_of(stages, str(like))), _longest_answer(stage.objective)]
    if longest[0] != longest[1]:
        yield path, f"`{like}` has another rollout.max_new_tokens, which decides how long prompts may be"
    parent = parent_name(stages, index)
    if parent not in before:
        return  # is said of `from`
    tokens = {name: special_tokens_of(base, stages, name) for name in (parent, str(like))}
    if lacking := [token for token in tokens[parent] if token not in tokens[str(like)]]:
        why = f"the data of `{like}` lacks tokens that the model of `{parent}` has ({', '.join(lacking)})"
        reserved = f"data.tokenizer.special_tokens={json.dumps(tokens[parent])}"
        yield path, f"{why}; give this stage sources of its own, or reserve them in the recipe: {reserved}"


def _others(data: Mapping[str, Any]) -> list[str]:
    return [key for key in data if key != "like"]


def _objective_of(stages: Sequence[Stage], name: str) -> Any:
    return next((stage.objective for stage in stages if stage.name == name), None)


def _longest_answer(objective: Any) -> int:
    return objective.rollout.max_new_tokens if isinstance(objective, Reinforcement) else 0


def _muon_problems(stage: Stage, base_train: Mapping[str, Any]) -> Iterator[tuple[Where, str]]:
    theirs, ours = (_section(train, "optimizer") for train in (base_train, stage.train))
    inherited = theirs.get("name") == "muon" and "name" not in ours
    if inherited and "lr" in ours and "lr" not in _section(ours, "muon"):
        yield (
            ("train", "optimizer", "lr"),
            "the recipe's Muon has a rate of its own, which stays as it is; set muon.lr too, or name: adamw",
        )


def _section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}


# ----------------------------------------------------------------------------------------------------------- its recipe
def stage_values(values: Mapping[str, Any], stages: Sequence[Stage], index: int, run: Path) -> dict[str, Any]:
    """Returns the raw recipe of a stage.

    Args:
        values: the raw recipe, with what its dial derives.
        stages: its validated stages.
        index: the number of the stage.
        run: the run directory of the recipe.
    """
    stage = stages[index]
    needed = {name: directory_of(run, name) for name in stages_needed(stages, index)}
    kept = {key: values[key] for key in ("seed", "deepspeed", "chat", "evaluation") if key in values}
    model = {key: value for key, value in _section(values, "model").items() if key not in ("depth", "size")}
    return {
        **kept,
        "name": f"{values.get('name', '')}.{stage.name}",
        "out": directory_of(run, stage.name),
        "data": _data(values, stages, index, run),
        "model": {**model, **stage.model, **({"causal": False} if is_masked(stage) else {})},
        "train": _train(_section(values, "train"), stage, needed[parent_name(stages, index)]),
        "parents": needed,
    }


def directory_of(run: Path, name: str) -> str:
    """Returns the run directory of a stage, or of the base."""
    return str(run if name == BASE else run / STAGES / name)


def _data(values: Mapping[str, Any], stages: Sequence[Stage], index: int, run: Path) -> dict[str, Any]:
    stage, base = stages[index], _section(values, "data")
    base_data = base.get("directory") or str(run / "data")
    if "like" in stage.data:
        if stage.data["like"] == BASE:
            return {**base, "directory": base_data}
        number = [one.name for one in stages].index(stage.data["like"])
        own = _data(values, stages, number, run)
        return {**own, "directory": own.get("directory") or str(Path(directory_of(run, stages[number].name)) / "data")}
    defaults = {key: base[key] for key in _DATA_INHERITED if key in base}
    tokens = _special_tokens(base, stages, stage)
    tokenizer = {"kind": "file", "path": str(Path(base_data) / TOKENIZER), **tokens}
    return merged({**defaults, "validation_fraction": 0.05, "tokenizer": tokenizer}, stage.data)


def special_tokens_of(base: Mapping[str, Any], stages: Sequence[Stage], name: str) -> list[str]:
    """Returns the special tokens of a stage's vocabulary, or the base's: its parent's, and those its objective needs.

    Args:
        base: the raw `data` section of the recipe.
        stages: those of the recipe.
        name: of the stage, or `base`. A parent that does not come before its stage counts as `base`.
    """
    names = [one.name for one in stages]
    if name not in names:
        known = _section(base, "tokenizer").get("special_tokens") or [END_OF_TEXT]
        return list(CHAT_TOKENS) if known == "chat" else list(known)
    index = names.index(name)
    found = special_tokens_of(base, stages[:index], parent_name(stages, index))
    needed = (
        CHAT_TOKENS if unit_of(stages[index].objective) != "document" else [MASK] if is_masked(stages[index]) else []
    )
    return [*found, *(token for token in needed if token not in found)]


def _special_tokens(base: Mapping[str, Any], stages: Sequence[Stage], stage: Stage) -> dict[str, Any]:
    """What a stage's vocabulary has beyond the base's, which need not have been made for it."""
    if unit_of(stage.objective) != "document":
        return {"special_tokens": "chat"}
    found = special_tokens_of(base, stages, stage.name)
    same = found == special_tokens_of(base, stages, BASE) and not is_masked(stage)
    return {} if same else {"special_tokens": found}


def _train(base: Mapping[str, Any], stage: Stage, init_from: str) -> dict[str, Any]:
    inherited = {key: value for key, value in base.items() if key not in _TRAIN_OWN}
    objective = stage.objective
    own: dict[str, Any] = {"init_from": init_from, "objective": objective.model_dump(mode="json", by_alias=True)}
    if unit_of(objective) == "document":
        own |= {key: base[key] for key in ("packing", "document_masking") if key in base}
    if isinstance(objective, Supervised):
        own |= {"packing": "best_fit", "document_masking": True}
    every = _SHORT
    if isinstance(objective, Reinforcement):
        rollout = objective.rollout
        every = -(-_SHORT // rollout.updates) * rollout.updates
        own |= {
            "schedule": {"kind": "constant"},
            "log_every": 1,
            "global_batch_size": rollout.rows_per_step,
        }
    own["checkpoint"] = {**_section(base, "checkpoint"), "every": every, "keep_best": 0}
    if own["checkpoint"].get("mirror"):
        own["checkpoint"]["mirror"] = f"{own['checkpoint']['mirror'].rstrip('/')}/{STAGES}/{stage.name}"
    own["validation"] = {**_section(base, "validation"), "every": min(_SHORT // 2, every)}
    if "lr" in _section(stage.train, "optimizer"):
        own["optimizer"] = {**_section(base, "optimizer"), "embedding_lr": None}
    return merged({**inherited, **own}, stage.train)

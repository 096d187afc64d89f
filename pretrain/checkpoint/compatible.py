"""Decides whether a recipe may go on from a checkpoint, and lists what changed on the way. Free of torch.

What decided the steps that were made must not change. What acts on later steps may, as long as there are any; each
such change is kept in the checkpoints that follow, so that a checkpoint says what made it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from configs.common.files import read_json
from configs.common.layout import MANIFEST
from configs.safety.user_code import UserCode
from configs.schema.batch_plan import total_steps
from configs.schema.decisive import LENGTH, acts_ahead, changed_settings
from configs.schema.objectives import Reinforcement
from configs.schema.recipe import RESOLVED_NAME, Recipe, load_run
from configs.schema.section import Custom
from data_prep.tokens.shards import DataManifest, load_manifest
from pretrain.batches.mixture import is_packing, plan_mixture, planned_steps, slots_of
from pretrain.batches.order import ORDER_VERSION
from pretrain.batches.packing import is_packed
from pretrain.checkpoint.base_model import BASE, base_fingerprints
from pretrain.checkpoint.manifest import CheckpointInfo, newest
from pretrain.checkpoint.parents import PARENT, changed_parents
from pretrain.optimizer.schedule import learning_rate

OBJECTIVE = "objective"  # in the state: `objective_code`
CHANGES = "changes"  # in the state: [{step, setting, before, after}, …], each from that step on
BATCH = "train.global_batch_size"
DATA = "the data's fingerprint"
_ACCEPTED = {BATCH: "global_batch_size", DATA: "data"}
_INIT_FROM = "train.init_from"
_NOTICEABLE = 0.01  # of a learning rate


def differences(info: CheckpointInfo, recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """Finds the settings that keep a recipe from going on from a checkpoint: name -> (checkpoint's value, recipe's).

    Settings of later steps count when the recipe has none: a run that has ended cannot have had another learning rate.
    """
    wanted = total_steps(recipe, info.train_windows)
    length = changed_length(info, recipe)
    found = _changed_settings(info, recipe)
    code = (info.state.get(OBJECTIVE), objective_code(recipe))
    if code[0] != code[1]:
        found["the code of train.objective"] = code
    found |= changed_parents(info, recipe)
    if info.step < wanted:
        return {path: pair for path, pair in found.items() if not acts_ahead(path) and not _accepted(path, recipe)}
    return {**{path: pair for path, pair in found.items() if not _accepted(path, recipe)}, **length}


def _changed_settings(info: CheckpointInfo, recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """The decisive settings that differ; of `train.init_from` the weights count, and not the path that names them."""
    found = changed_settings(info.recipe, recipe)
    base, path = info.state.get(BASE), recipe.train.init_from
    if _INIT_FROM in found and base is not None and path is not None and base in base_fingerprints(Path(path)):
        del found[_INIT_FROM]
    return found


def objective_code(recipe: Recipe) -> dict[str, Any] | None:
    """Identifies the user's code in an objective, whatever file holds it; None: there is none.

    Raises:
        ValueError: when there is no such file.
    """
    own = recipe.train.objective
    if isinstance(own, Reinforcement) and own.rewards.custom:
        return {"rewards": [UserCode.read(one.code, one.options).identity for one in own.rewards.custom]}
    return UserCode.read(own.code, own.options).identity if isinstance(own, Custom) else None


def _accepted(path: str, recipe: Recipe) -> bool:
    accepted = recipe.train.checkpoint.accept_changed
    if path.startswith("data.") and "data" in accepted:
        return True
    return path in _ACCEPTED and _ACCEPTED[path] in accepted


def changed_length(info: CheckpointInfo, recipe: Recipe) -> dict[str, tuple[int, int]]:
    """The numbers of steps of both recipes when they differ, under the name of the setting; else empty."""
    before, now = (total_steps(one, info.train_windows) for one in (info.recipe, recipe))
    name = next(path for path in LENGTH if getattr(recipe.train, path.removeprefix("train.")) is not None)
    return {} if before == now else {f"the number of steps ({name})": (before, now)}


def check_settings(recipe: Recipe) -> CheckpointInfo | None:
    """The newest checkpoint of the recipe's run directory, None without one; writes nothing.

    Raises:
        ValueError: naming both values, when the recipe cannot go on from it, or calls a finished run its own that was
            trained otherwise.
    """
    info = newest(recipe.run_directory)
    if info is not None:
        refuse(info, differences(info, recipe))
    return info


def refuse(info: CheckpointInfo, different: dict[str, tuple[Any, Any]]) -> None:
    """Raises `ValueError` with both values of each difference, if there are any."""
    if not different:
        return
    listed = [f"{name} = {_short(was)}, but now it is {_short(now)}" for name, (was, now) in different.items()]
    ways = [
        f"accept it (train.checkpoint.accept_changed=[{_ACCEPTED[name]}])" for name in different if name in _ACCEPTED
    ]
    if any(name.startswith("the number of steps") for name in different):
        ways.append(f"score what there is: replica eval {info.directory.parent.parent} [--step N]")
    if any(name.startswith(PARENT) for name in different):
        run = info.directory.parent.parent
        ways.append(f"move {run} away, and the same command trains the stage again from what there is now")
    raise ValueError(
        f"{info.directory} was made with {'; '.join(listed)}; set it back, or start a new run with another --out"
        + "".join(f", or {way}" for way in ways)
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "…"


def check_belongs(info: CheckpointInfo, recipe: Recipe, data: DataManifest) -> None:
    """Raises `ValueError`, naming both values, when training cannot go on from this checkpoint with this data.

    `train.checkpoint.accept_changed` of the recipe lets some changes pass.
    """
    refuse(info, differences(info, recipe))
    pairs = {"the tokenizer's fingerprint": (info.tokenizer_fingerprint, data.tokenizer_fingerprint)}
    pairs[DATA] = (info.data_fingerprint, data.fingerprint)
    refuse(info, {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and not _accepted(name, recipe)})


def is_finished(recipe: Recipe) -> bool:
    """Whether the run of this recipe has made all its steps on the data that lies there now; fast, without torch.

    A stage is finished only if each of its parents is.
    """
    info = newest(recipe.run_directory)
    return info is not None and _ends_with(info, recipe)


def check_finished(recipe: Recipe) -> bool:
    """`check_settings`, then `is_finished`."""
    info = check_settings(recipe)
    return info is not None and _ends_with(info, recipe)


def _ends_with(info: CheckpointInfo, recipe: Recipe) -> bool:
    manifest = recipe.data_directory / MANIFEST
    if info.step != total_steps(recipe, info.train_windows) or differences(info, recipe) or not manifest.is_file():
        return False
    if not all(_unfinished(Path(run)) is None for run in recipe.parents.values() if newest(Path(run)) is not None):
        return False
    if read_json(manifest).get("fingerprint") == info.data_fingerprint:
        return True
    return _accepted(DATA, recipe) and (recipe.train.epochs is None or _epochs_are_made(info, recipe))


def check_parents(recipe: Recipe) -> None:
    """Raises `ValueError` when a stage cannot begin or go on, because a parent has not finished; says what to run."""
    for name, run in recipe.parents.items():
        if problem := _unfinished(Path(run)):
            raise ValueError(
                f"{recipe.name} needs the weights of `{name}`, but {run} {problem}; `replica run RECIPE` trains all "
                f"stages in order, `replica train RECIPE --stage {name}` this one"
            )


def _unfinished(run: Path) -> str | None:
    """Tells why the run of a parent is not finished; None: it is. Its data may be gone, but must not have changed."""
    info = newest(run)
    if info is None or not (run / RESOLVED_NAME).is_file():
        return "has no checkpoint yet"
    recipe = load_run(run)
    manifest = recipe.data_directory / MANIFEST
    if info.step != (wanted := total_steps(recipe, info.train_windows)):
        return f"has made {info.step} of its {wanted} steps"
    if different := differences(info, recipe):
        return f"was trained otherwise than its recipe says now ({', '.join(different)})"
    if manifest.is_file() and read_json(manifest).get("fingerprint") != info.data_fingerprint:
        return "was trained on other data than it has now" if not _accepted(DATA, recipe) else None
    above = [_unfinished(Path(one)) for one in recipe.parents.values() if newest(Path(one)) is not None]
    return next((f"starts from a run that {problem}" for problem in above if problem), None)


def _epochs_are_made(info: CheckpointInfo, recipe: Recipe) -> bool:
    """Whether the steps suffice for the epochs over the data that lies there now, which may have grown."""
    data, context = load_manifest(recipe.data_directory), recipe.model.context_length
    if is_packing(recipe) and not all(is_packed(data, source, context) for source in data.train):
        return False  # training packs first, and counts then
    windows = sum(source.windows for source in plan_mixture(recipe, data).sources)
    return info.step >= planned_steps(recipe, windows)


# -------------------------------------------------------------------------------------------------------- what changed
def changes(info: CheckpointInfo, recipe: Recipe, data: DataManifest) -> list[dict[str, Any]]:
    """Lists what changed over the run when the recipe goes on from this checkpoint: for `CHANGES` of the state."""
    now = {**_changed_settings(info, recipe), **changed_length(info, recipe)}
    if info.data_fingerprint != data.fingerprint:
        now[DATA] = (info.data_fingerprint, data.fingerprint)
    added = [
        {"step": info.step, "setting": name, "before": _plain(was), "after": _plain(value)}
        for name, (was, value) in now.items()
    ]
    return [*info.state.get(CHANGES, []), *added]


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | list | None) else str(value)


def recipe_of_step(info: CheckpointInfo, step: int) -> Recipe:
    """The recipe that update `step` (counted from 1) of a checkpoint's run was made with, as far as it decides batches.

    Raises:
        ValueError: when that step was made on other data than the checkpoint.
    """
    recipe = info.recipe
    for change in reversed(info.state.get(CHANGES, [])):
        if step > change["step"]:
            break
        if change["setting"] == DATA:
            raise ValueError(
                f"step {step} was made on other data (fingerprint {change['before']}), which the run left at step "
                f"{change['step']}"
            )
        if change["setting"] == BATCH:
            train = recipe.train.model_copy(update={"global_batch_size": change["before"]})
            recipe = recipe.model_copy(update={"train": train})
    return recipe


def rate_jump(info: CheckpointInfo, recipe: Recipe) -> str | None:
    """A warning when changed settings or another length make the learning rate jump; None: it does not."""
    if info.step == 0:
        return None
    before, now = info.recipe, recipe
    lengths = [total_steps(one, info.train_windows) for one in (before, now)]
    if info.step >= lengths[1]:
        return None
    rates = [
        learning_rate(one.train.schedule, one.train.optimizer.lr, info.step, total)
        for one, total in zip((before, now), lengths, strict=True)
    ]
    if abs(rates[1] - rates[0]) <= _NOTICEABLE * max(rates):
        return None
    what = [
        f"{name} was {_short(was)} and is {_short(value)}" for name, (was, value) in _about_the_rate(info, now).items()
    ]
    return (
        f"the learning rate goes from {rates[0]:.3g} to {rates[1]:.3g} at step {info.step + 1:,}: {'; '.join(what)}. "
        + _advice(info, before)
    )


def _about_the_rate(info: CheckpointInfo, now: Recipe) -> dict[str, tuple[Any, Any]]:
    named = ("train.schedule", "train.optimizer.lr")
    found = {path: pair for path, pair in changed_settings(info.recipe, now).items() if path.startswith(named)}
    return {**changed_length(info, now), **found}


def _advice(info: CheckpointInfo, before: Recipe) -> str:
    schedule, total = before.train.schedule, total_steps(before, info.train_windows)
    if schedule.kind != "wsd":
        return "A run that is to be made longer is better given train.schedule.kind wsd, whose rate stays until its end"
    start = max(schedule.warmup_steps, total - 1 - max(1, round(schedule.decay_fraction * total)))
    return f"A wsd run had better go on from a checkpoint before its decay, which began at step {start + 1:,}"


def check_past(info: CheckpointInfo, now: Recipe, data: DataManifest) -> None:
    """Raises `ValueError` when the steps already made would read other windows under the present recipe.

    What lies ahead may change: another phase, or more steps where neither phases nor caps hang on their number.
    """
    before, step = info.recipe, info.step
    old, new = plan_mixture(before, data), plan_mixture(now, data)
    if not old.pooled and info.state.get("order", 1) != ORDER_VERSION:
        raise ValueError(
            f"{info.directory} was made by an earlier version of Replica, which put weighted sources into another "
            "order; start a new run with another --out"
        )
    if old.same_before(new, slots_of(now, step)):
        return
    begun = "weights, caps and phases"
    if before.data.mixture == now.data.mixture:
        begun += "; a phase starts at a fraction of the run, and caps are shared out over its length, so both move with"
        begun += " train.steps, train.tokens and train.epochs"
    raise ValueError(
        f"the mixture of the first {step:,} steps, which are trained already, would be another one (it follows from "
        f"{begun}); set them back, or start a new run with another --out"
    )

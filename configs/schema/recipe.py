"""Loads a recipe: YAML file + `a.b=value` overrides -> one validated, immutable description of a run.

Precedence: defaults, then the file, then overrides from left to right. Relative paths in the file are resolved against
the file's directory, relative paths in overrides against the working directory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from configs.common.files import fingerprint, write_text
from configs.common.layout import STAGES
from configs.safety.hide_secrets import mask, mask_override
from configs.safety.own_files import refuse_links
from configs.safety.parsing import parse_yaml
from configs.schema.chat import Chat
from configs.schema.data import Data
from configs.schema.deepspeed_keys import check_deepspeed
from configs.schema.evaluation import Evaluation, Report
from configs.schema.float8_limits import check_float8
from configs.schema.model import Model
from configs.schema.objective_limits import check_mask_token, check_objective
from configs.schema.objectives import unit_of
from configs.schema.overrides import RecipeError as RecipeError
from configs.schema.overrides import apply_override, set_value
from configs.schema.paths import resolve_paths
from configs.schema.presets import PRESETS
from configs.schema.problems import describe
from configs.schema.reading_direction import with_direction
from configs.schema.rollout_limits import check_rollouts
from configs.schema.scaling import derive, filled, has_dial
from configs.schema.section import PathText, Section
from configs.schema.shipped import find_recipe
from configs.schema.stage import Stage
from configs.schema.stage_recipe import BASE, directory_of, stage_problems, stage_values
from configs.schema.train import Train
from configs.schema.unit_limits import check_units
from configs.schema.validation import check_parts

RESOLVED_NAME = "recipe.yaml"
_FAST: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # libyaml's writer, which a build of PyYAML may lack


class Recipe(Section):
    """All settings of a run. See `docs/recipe.md` for all keys."""

    name: str = Field(
        "",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="Name of the run and of its directory in `runs/`; default: the name of the recipe's file.",
    )
    seed: int = Field(1234, ge=0, le=2**62, description="Seed of all random numbers.")
    out: str | None = Field(
        None, min_length=1, description="Run directory, relative to the working directory; null: `runs/<name>`."
    )
    data: Data
    model: Model
    train: Train
    deepspeed: dict[str, Any] = Field(
        {},
        description="Further settings for DeepSpeed. Keys that import code or write files are refused "
        "(docs/security.md). A value that contradicts the recipe is an error.",
    )
    chat: Chat = Chat()
    stages: list[Stage] = Field([], description="Training after the base: fine-tuning, rewards, preferences, policies.")
    parents: dict[str, PathText] = Field(
        {}, description="Run directory of each stage that this one needs; written by Replica into a stage's own recipe."
    )
    evaluation: Evaluation = Evaluation()
    report: Report = Report()

    @model_validator(mode="before")
    @classmethod
    def _turn_dial(cls, values: Any) -> Any:
        values = with_direction(values)
        if not has_dial(values):
            return values
        try:
            return filled(values, derive(values))
        except (TypeError, AttributeError):  # a value has a wrong type, which validation reports
            return values

    @model_validator(mode="after")
    def _sections_fit(self) -> Recipe:
        check_float8(self.model, self.train)
        check_objective(self.model, self.train)
        check_deepspeed(self.deepspeed)
        check_rollouts(self.train)
        check_units(self.data, unit_of(self.train.objective))
        check_mask_token(self.data, self.train)
        check_parts(self.train.validation, self.evaluation, self.train.parallel.sharing)
        return self

    @property
    def run_directory(self) -> Path:
        """Directory of all files of this run."""
        return Path(self.out or f"runs/{self.name}").resolve()

    @property
    def stage_names(self) -> list[str]:
        """Names of the stages after the base, in order."""
        return [stage.name for stage in self.stages]

    @property
    def data_directory(self) -> Path:
        """Directory of the prepared data: `data.directory`, which several runs can share, or `data/` of the run."""
        return Path(self.data.directory).resolve() if self.data.directory else self.run_directory / "data"

    def fingerprint(self) -> str:
        """Computes a digest of all settings of this run: without output directories, and without later stages."""
        other: dict[str, Any] = {"out": True, "stages": True, "parents": True, "data": {"directory": True}}
        return fingerprint(self.model_dump(mode="json", exclude=other))

    def stage(self, name: str) -> Recipe:
        """Returns the recipe of a stage, an ordinary recipe with its run directory in that of this one.

        `base` is the recipe itself. `train.init_from` names the run directory that the weights come from, and `parents`
        all run directories that the stage needs.

        Raises:
            RecipeError: when there is no such stage, or its settings do not fit.
        """
        if name == BASE:
            return self
        names = self.stage_names
        if name not in names:
            raise RecipeError(f"{self.name} has no stage `{name}`; it has {', '.join((BASE, *names))}")
        values = stage_values(self.model_dump(mode="json"), self.stages, names.index(name), self.run_directory)
        try:
            return Recipe.model_validate(values)
        except ValidationError as error:
            prefix = ("stages", names.index(name))
            raise RecipeError("\n".join(describe(item, Recipe, prefix) for item in error.errors())) from error


# -------------------------------------------------------------------------------------------------------------- reading
def _parse_yaml(text: str, where: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise RecipeError(f"{where} is not valid YAML: {error}") from error


def _copy(node: Any) -> Any:
    """Copies nested values without sharing: an override of a section must not change its YAML aliases."""
    if isinstance(node, dict):
        return {key: _copy(value) for key, value in node.items()}
    return [_copy(item) for item in node] if isinstance(node, list) else node


# -------------------------------------------------------------------------------------------------------------- public
class Origins:
    """Tells where each value comes from: an override, the file, the dial, the preset, or the default."""

    def __init__(
        self, file: Path, written: Any, overrides: dict[tuple[str | int, ...], str], preset: str, values: Any
    ) -> None:
        """`written`: the values of the file. `values`: the same with the overrides applied."""
        self.file = file
        self._dialled = derive(values)
        model = values.get("model") or {}
        self._dial = next((f"{key} {model[key]}" for key in ("size", "depth") if model.get(key) is not None), "")
        self._implies_direction = with_direction(values) is not values
        self._written = written
        self._overrides = overrides
        self._preset = preset

    def override(self, path: tuple[str | int, ...]) -> str | None:
        """Returns the override that set this path or a parent of it, if any."""
        return next(
            (self._overrides[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self._overrides), None
        )

    def of(self, path: tuple[str | int, ...]) -> str:
        """Returns `override …`, the file name, `from size …`, `from depth …`, `preset …` or `default`."""
        if path in self._dialled:
            return f"from {self._dial}"
        if text := self.override(path):
            return f"override {mask_override(text)}"
        if _reaches(self._written, path):
            return self.file.name
        if path[:1] == ("data",) and _reaches(PRESETS.get(self._preset, {}), path[1:]):
            return f"preset {self._preset}"
        return "from train.objective" if path == ("model", "causal") and self._implies_direction else "default"


def _reaches(node: Any, path: Sequence[str | int]) -> bool:
    """Tells whether there is a value at this path."""
    for key in path:
        try:
            node = node[key]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def load_with_origins(
    path: str | Path, overrides: Sequence[str] = (), literal: Mapping[str, str | int] | None = None
) -> tuple[Recipe, Origins]:
    """Reads and validates a recipe like `load`; also returns where each value comes from."""
    file = find_recipe(path)
    try:
        written = _parse_yaml(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file} is not UTF-8 text ({error}); save it as UTF-8") from error
    values = _copy(written)
    if not isinstance(values, dict):
        raise RecipeError(f"{file}: a recipe is a mapping of sections, such as `data:`, `model:`, `train:`")
    problems: list[str] = []
    origins: dict[tuple[str | int, ...], str] = {}
    for override in overrides:
        try:
            origins[tuple(apply_override(values, override))] = override
        except RecipeError as error:
            problems.append(str(error))
    for dotted, value in (literal or {}).items():
        try:
            origins[tuple(set_value(values, dotted, value, dotted))] = f"{dotted}={value}"
        except RecipeError as error:
            problems.append(str(error))
    values.setdefault("name", _named_after(file))
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems += [describe(item, Recipe) for item in error.errors()]
        problems += _problems_of_stages(values, known=error.errors())
    else:
        problems += _problems_of_stages(values)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise RecipeError(f"{file}: {len(problems)} problem{'s' if len(problems) > 1 else ''} in the recipe\n{listed}")
    known = Origins(file, written, origins, recipe.data.preset, values)

    # `values` is changed in place and validated again, because a validated recipe is immutable.
    def base_for(key: tuple[str | int, ...]) -> Path:
        return Path.cwd() if known.override(key) else file.absolute().parent

    resolve_paths(recipe, values, base_for)
    for index, stage in enumerate(recipe.stages):
        whole, raw = recipe.stage(stage.name), values["stages"][index]
        resolve_paths(whole.data, raw.get("data"), base_for, ("stages", index, "data"))
        resolve_paths(whole.train, raw.get("train"), base_for, ("stages", index, "train"))
    return Recipe.model_validate(values), known


def _problems_of_stages(values: dict[str, Any], known: Sequence[Any] = ()) -> list[str]:
    """Lists the problems of all stages of a raw recipe; `known`: problems of the recipe itself, which they inherit."""
    try:
        stages = [Stage.model_validate(stage) for stage in values.get("stages") or []]
        base = filled(values, derive(values)) if has_dial(values) else values
    except (ValueError, TypeError, AttributeError):
        return []  # the recipe's own problems say it
    reported = {(item["loc"], item["msg"]) for item in known}
    run = Path(str(values.get("out") or f"runs/{values['name']}")).resolve()
    found: list[str] = []
    for index in range(len(stages)):
        where: tuple[str | int, ...] = ("stages", index)
        problems = list(stage_problems(stages, index, values))
        found += [f"{'.'.join(map(str, (*where, *path)))}: {message}" for path, message in problems]
        if problems:
            continue
        try:
            Recipe.model_validate(stage_values(base, stages, index, run))
        except ValidationError as error:
            own = [item for item in error.errors() if (item["loc"], item["msg"]) not in reported]
            found += [describe(item, Recipe, where) for item in own]
    return found


def _named_after(file: Path) -> str:
    """Derives a recipe's default name from its file name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", file.stem).lstrip("_.-") or "recipe"


def check_name(path: str | Path, recipe: Recipe, overrides: Sequence[str] = ()) -> None:
    """Refuses a copied recipe that still has the original's name: it would run in the original's directory.

    Raises:
        RecipeError: when `name` differs from the file name, and neither an override nor `out` gives a directory.
    """
    file = find_recipe(path)
    own = _named_after(file)
    given = recipe.out is not None or any(text.startswith("name=") for text in overrides)
    if recipe.name != own and not given and file.name != RESOLVED_NAME:
        raise RecipeError(
            f"{file} says `name: {recipe.name}`, so it would run in runs/{recipe.name}, the directory of "
            f"{recipe.name}.yaml; leave `name` out (the default is the file name), set it to `{own}`, or choose a "
            "directory with --out"
        )


def load(path: str | Path, overrides: Sequence[str] = (), literal: Mapping[str, str | int] | None = None) -> Recipe:
    """Reads and validates a recipe.

    Args:
        path: the YAML file, or the name of a shipped recipe.
        overrides: `a.b=value` strings; values are YAML.
        literal: dotted path -> value that is not parsed as YAML, such as a path from the command line; applied last.

    Raises:
        RecipeError: every problem found, each with the full path of the key; for an unknown key, the nearest one.
    """
    return load_with_origins(path, overrides, literal)[0]


def load_run(run: str | Path) -> Recipe:
    """Loads the resolved recipe of a run directory; its `out` is that directory, even if it was moved.

    Raises:
        RecipeError: when it is not a run directory, or its recipe is invalid.
        ValueError: when it contains a link that leads out of it.
    """
    refuse_links(Path(run).resolve())
    file = Path(run) / RESOLVED_NAME
    if not file.is_file():
        raise RecipeError(
            f"{run} is not a run directory: it has no {RESOLVED_NAME}. Start one with `replica run RECIPE --out {run}`."
        )
    recipe, here = load(file), Path(run).resolve()
    if recipe.parents and recipe.run_directory != here:
        recipe = _moved(recipe, recipe.run_directory.parents[1], here.parents[1])
    return recipe.model_copy(update={"out": str(here)})


def _moved(recipe: Recipe, before: Path, now: Path) -> Recipe:
    """Returns a stage's recipe for a run directory that was moved with all its stages."""

    def place(path: str | None) -> str | None:
        moved = now / Path(path).relative_to(before) if path and Path(path).is_relative_to(before) else None
        return str(moved) if moved and moved.exists() else path

    data, train = recipe.data, recipe.train
    tokenizer = data.tokenizer.model_copy(update={"path": place(data.tokenizer.path)})
    parents = {name: place(run) for name, run in recipe.parents.items()}
    data = data.model_copy(update={"directory": place(data.directory), "tokenizer": tokenizer})
    train = train.model_copy(update={"init_from": place(train.init_from)})
    return recipe.model_copy(update={"data": data, "train": train, "parents": parents})


def find_run(text: str | Path) -> Path:
    """Returns the run directory that a command line names: a directory, or `RUN:STAGE` for that stage of a run.

    Raises:
        RecipeError: when the run has no such stage.
    """
    run, separator, name = str(text).rpartition(":")
    if not separator or Path(text).exists() or not Path(run).is_dir():
        return Path(text)
    stage = Path(directory_of(Path(run), name))
    if name != BASE and not (stage / RESOLVED_NAME).is_file():
        there = sorted(file.parent.name for file in Path(run).glob(f"{STAGES}/*/{RESOLVED_NAME}"))
        raise RecipeError(
            f"{run} has no stage `{name}` that has begun; it has {', '.join((BASE, *there))}. Start one with `replica "
            f"run {run}/{RESOLVED_NAME}`."
        )
    return stage


def dump(recipe: Recipe) -> str:
    """Writes the recipe as YAML, with every default."""
    return to_yaml(recipe.model_dump(mode="json"))


def to_yaml(values: dict[str, Any]) -> str:
    """Writes settings as YAML, in their own order."""
    form: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 120}
    text: str = yaml.dump(values, Dumper=_FAST, **form)
    # libyaml writes characters such as 😀 as \U0001F600, which nobody can read.
    return text if "\\U" not in text else yaml.safe_dump(values, **form)


def published(recipe: Recipe) -> str:
    """Writes the recipe like `dump`, with `***` for secrets in URLs and file system options."""
    return to_yaml(mask(recipe.model_dump(mode="json")))


def save(recipe: Recipe, run: Path) -> Path:
    """Writes the resolved recipe into the run directory; returns the file.

    Later commands read it, so it contains the recipe's secrets. If there are any, only the owner can read it (mode
    0600).
    """
    target, text = run / RESOLVED_NAME, dump(recipe)
    write_text(target, text, private=text != published(recipe))
    return target


def save_published(recipe: Recipe, directory: Path) -> Path:
    """Writes the recipe without its secrets, for a directory that may be published; returns the file."""
    target = directory / RESOLVED_NAME
    write_text(target, published(recipe))
    return target


def json_schema() -> str:
    """Returns the JSON schema of a recipe, for editors (`# yaml-language-server: $schema=recipe.schema.json`)."""
    return json.dumps(Recipe.model_json_schema(), indent=2) + "\n"

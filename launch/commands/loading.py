"""Loads the recipe that a command line names. Subcommands import this late: `--help` needs no recipe."""

from __future__ import annotations

from argparse import Namespace

from configs.schema.recipe import Recipe, check_name, load

_SETTINGS = {"out": "out", "ranks": "train.ranks", "ray_address": "data.ray_address"}


def set_by_options(arguments: Namespace) -> dict[str, str | int]:
    """Returns the settings that options give, by their path. Their values are not parsed as YAML."""
    given = {path: getattr(arguments, name, None) for name, path in _SETTINGS.items()}
    return {path: value for path, value in given.items() if value is not None}


def load_recipe(arguments: Namespace) -> Recipe:
    """Loads the recipe, or the recipe of its stage that `--stage` names."""
    recipe = load(arguments.recipe, arguments.overrides, set_by_options(arguments))
    check_name(arguments.recipe, recipe, arguments.overrides)
    name = getattr(arguments, "stage", None)
    return recipe if name is None else recipe.stage(name)

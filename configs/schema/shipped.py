"""Finds a recipe's file by its path, or by the name of a shipped recipe such as `demo`."""

from __future__ import annotations

import difflib
from pathlib import Path

from configs.schema.overrides import RecipeError

DIRECTORY = Path(__file__).resolve().parents[1]


def shipped_recipes() -> dict[str, Path]:
    """Maps names to files of the shipped recipes: in a clone those in `configs/`, else those of the package."""
    return {file.name.removesuffix(".yaml"): file for file in sorted(DIRECTORY.glob("*.yaml"))}


def find_recipe(written: str | Path) -> Path:
    """Returns the file of a recipe that is given as a path or as a name.

    An existing path is that file. Anything else is the name of a shipped recipe. If `NAME.yaml` also exists in the
    working directory, the name is ambiguous and is refused.

    Raises:
        RecipeError: when there is no such recipe, or the name is ambiguous.
    """
    path, known = Path(written), shipped_recipes()
    if path.is_file():
        return path
    beside, file = Path(f"{written}.yaml"), known.get(str(written))
    if file is None:
        near = difflib.get_close_matches(path.name.removesuffix(".yaml"), known, n=1, cutoff=0.7)
        meant = str(beside) if beside.is_file() else near[0] if near else ""
        hint = f" Did you mean `{meant}`?" if meant else ""
        raise RecipeError(f"{written}: no such recipe.{hint} Those that ship, by name: {', '.join(known)}")
    if beside.is_file() and not beside.samefile(file):
        raise RecipeError(f"{written} is a recipe that ships, and {beside} lies here: write ./{beside}, or {file}")
    return file

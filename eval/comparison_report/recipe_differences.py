"""Tells in what the recipes of runs differ, setting by setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.results import Results

# Where things lie and what they are called makes no score.
_NO_MATTER = (
    "name",
    "out",
    "report",
    "parents",
    "data.directory",
    "data.ray_address",
    "train.tensorboard",
    "train.wandb",
)
_LONGEST = 120


def recipe_differences(runs: Sequence[Results]) -> list[tuple[str, list[str]]]:
    """Lists the settings in which recipes differ, and packages of other versions.

    Args:
        runs: results, which have the recipe that made them.

    Returns:
        (path of the setting, its value in each run); `–` where a run has none.
    """
    flat = [_flat(run.recipe) for run in runs]
    packages = [{f"package {name}": version for name, version in run.versions.items()} for run in runs]
    rows = []
    for kept in (flat, packages):
        for path in dict.fromkeys(path for settings in kept for path in settings):
            values = [settings.get(path, _MISSING) for settings in kept]
            if any(value != values[0] for value in values) and not _no_matter(path):
                rows.append((path, [_shown(value) for value in values]))
    return rows


_MISSING = object()


def _no_matter(path: str) -> bool:
    return any(path == one or path.startswith(f"{one}.") for one in _NO_MATTER)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Maps dotted paths to values; items of a list by their names, else by their numbers."""
    if isinstance(value, Mapping):
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        named = [inner.get("name") if isinstance(inner, Mapping) else None for inner in value]
        unique = len(set(named)) == len(named)
        items = [
            (str(name if name and unique else number), inner)
            for number, (name, inner) in enumerate(zip(named, value, strict=True))
        ]
    else:
        return {path: value}
    found: dict[str, Any] = {}
    for key, inner in items:
        found |= _flat(inner, f"{path}.{key}" if path else key)
    return found


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "–"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 2] + " …"

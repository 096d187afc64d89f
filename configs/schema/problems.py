"""Describes what is wrong with a recipe: one line for each problem, with the path of the key and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from configs.safety.hide_secrets import is_secret, mask


def describe(error: Any, root: type[BaseModel], prefix: tuple[str | int, ...] = ()) -> str:
    """Describes one error of pydantic about a value of `root`, which stands at `prefix` in the recipe."""
    path, known = _walk(error["loc"], root)
    dotted = ".".join(map(str, (*prefix, *path))) or "recipe"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
        hint = (
            f"did you mean `{'.'.join(map(str, [*prefix, *path[:-1], near[0]]))}`?"
            if near
            else f"known keys: {', '.join(known)}"
        )
        return f"{dotted}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{dotted}: missing; the recipe must set it"
    message = error["msg"].removeprefix("Value error, ")
    given = mask(error.get("input"), hidden=any(is_secret(key) for key in path))
    return f"{dotted}: {message}" + (f" (given: {given!r})" if not isinstance(given, dict | list | BaseModel) else "")


def _nested_models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _nested_models(argument)


def _walk(location: Sequence[str | int], root: type[BaseModel]) -> tuple[list[str | int], list[str]]:
    """Returns the keys of a path as the recipe has them, and those that are valid in place of the last one.

    pydantic adds the names of union members, such as `str`, `list[...]` or `sft`, which are no keys of the recipe.
    """
    path: list[str | int] = []
    known: list[str] = []
    models = [root]
    for key in location:
        if isinstance(key, int):
            path.append(key)
            continue
        fields = [field for model in models for name, field in model.model_fields.items() if key in (name, field.alias)]
        if not fields and ("[" in key or key in {"str", "constrained-str", "entry"}):
            continue
        if not fields and (members := [model for model in models if key in _tags(model)]):
            models = members
            continue
        path.append(key)
        known = list(dict.fromkeys(field.alias or name for one in models for name, field in one.model_fields.items()))
        models = list(_nested_models(fields[0].annotation)) if fields else models
    return path, known


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    """Names by which pydantic tells a member of a union."""
    fields = [model.model_fields[name] for name in ("kind", "rule") if name in model.model_fields]
    return tuple(tag for field in fields for tag in get_args(field.annotation)) or ("custom",)

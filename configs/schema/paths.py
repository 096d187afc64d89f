"""Finds the settings of a recipe that are paths, and makes relative ones absolute."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from configs.schema.section import PathMarker


def resolve_paths(section: BaseModel, values: Any, base_for: Any, prefix: tuple[str | int, ...] = ()) -> None:
    """Makes relative paths in the raw `values` absolute. The schema of `section` tells which settings are paths."""
    for name, field in type(section).model_fields.items():
        value = values.get(name) if isinstance(values, dict) else None
        if value is None:
            continue
        here = (*prefix, name)
        current = getattr(section, name)
        if marker := path_marker(field):
            values[name] = _absolute(value, base_for, here, marker.pattern)
        elif isinstance(current, BaseModel):
            resolve_paths(current, value, base_for, here)
        elif isinstance(current, list):
            for index, item in enumerate(current):
                if isinstance(item, BaseModel):
                    resolve_paths(item, value[index], base_for, (*here, index))


def is_path(field: Any) -> bool:
    """Tells whether a field of a section is a path."""
    return path_marker(field) is not None


def path_marker(field: Any) -> PathMarker | None:
    """Returns the marker of a path field; None for other fields."""
    return next(_markers((field.metadata, field.annotation)), None)


def _markers(annotation: Any) -> Iterator[PathMarker]:
    """Yields the markers in a field's type, such as `list[PathText] | None`."""
    if isinstance(annotation, PathMarker):
        yield annotation
    inner = annotation if isinstance(annotation, list | tuple) else get_args(annotation)
    for part in (*inner, *getattr(annotation, "__metadata__", ())):
        yield from _markers(part)


def _absolute(value: Any, base_for: Any, path: tuple[str | int, ...], pattern: bool) -> Any:
    if isinstance(value, list):
        return [_absolute(item, base_for, (*path, index), pattern) for index, item in enumerate(value)]
    if isinstance(value, dict):
        return {key: _absolute(item, base_for, (*path, key), pattern) for key, item in value.items()}
    if "://" in value:
        return value
    base, rest = base_for(path).absolute(), Path(value)
    if rest.parts[:1] and rest.parts[0].startswith("~"):
        base, rest = Path(rest.parts[0]).expanduser(), Path(*rest.parts[1:])
    if pattern:
        base = Path(glob.escape(str(base)))  # a `*` in the directory's name is not a pattern
    return str(base / rest)

"""Applies overrides `a.b=value` from the command line to the values of a recipe's file."""

from __future__ import annotations

from typing import Any

from configs.safety.hide_secrets import MASK, mask_override
from configs.safety.parsing import parse_yaml


class RecipeError(ValueError):
    """A recipe that cannot be used; the message lists every problem found, with its path and the fix."""


def apply_override(values: dict[str, Any], override: str) -> list[str | int]:
    """Sets one `a.b=value` in place, and returns the path as keys; `value` is YAML.

    Raises:
        RecipeError: when the path does not exist, or the value is not YAML.
    """
    dotted, separator, text = override.partition("=")
    shown = mask_override(override)
    if not separator or not dotted:
        raise RecipeError(f"override `{shown}`: write it as a.b=value")
    return set_value(values, dotted, _override_value(text, shown), shown)


def set_value(values: dict[str, Any], dotted: str, value: Any, shown: str) -> list[str | int]:
    """Sets the value at a dotted path; list items by index or name (`data.sources.0.weight`, `stages.sft.train.steps`).

    Raises:
        RecipeError: when the path does not exist; `shown` names the override.
    """
    keys: list[str | int] = [int(part) if part.isdigit() else part for part in dotted.split(".")]
    node: Any = values
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        if isinstance(node, list):
            key = keys[position] = _index(node, key, f"override `{shown}`: {'.'.join(map(str, keys[:position]))}")
        elif not isinstance(node, dict):
            raise RecipeError(
                f"override `{shown}`: {'.'.join(map(str, keys[:position]))} is a single value, it has no `{key}`"
            )
        else:
            key = str(key)
            keys[position] = key
        if last:
            node[key] = value
        else:
            if isinstance(node, dict) and node.get(key) is None:
                node[key] = {}
            node = node[key]
    return keys


def _index(items: list[Any], key: str | int, where: str) -> int:
    """Returns the index of a list's item, which its index or its `name` gives."""
    if isinstance(key, int) and key < len(items):
        return key
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if str(key) in names:
        return names.index(str(key))
    listed = ", ".join(str(name) for name in names if name is not None)
    raise RecipeError(
        f"{where} is a list; give an index below {len(items)}" + (f", or a name: {listed}" * bool(listed))
    )


def _override_value(text: str, shown: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError as error:
        reason = "" if MASK in shown else f": {error}"  # the error repeats the text, which may be a secret
        raise RecipeError(f"override `{shown}` is not valid YAML{reason}") from error

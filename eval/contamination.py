"""Splits evaluation sets into clean items and items that training documents touch (arXiv:2005.14165, appendix C)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from configs.common.files import read_json
from configs.common.layout import MANIFEST
from configs.common.notices import note
from configs.schema.recipe import Recipe
from eval.results import Result
from pretrain.checkpoint.manifest import CheckpointInfo

if TYPE_CHECKING:
    from data_prep.decontamination.decontaminate import Touched

STAGE = "decontaminate"
Mask = NDArray[np.bool_]


def is_known(recipe: Recipe, checkpoint: CheckpointInfo) -> bool:
    """Tells whether the training data was compared with evaluation sets, and still exists."""
    file = recipe.data_directory / MANIFEST
    if not file.is_file():
        return False
    manifest = read_json(file)
    return manifest.get("fingerprint") == checkpoint.data_fingerprint and STAGE in manifest.get("stages", [])


def identity(recipe: Recipe, checkpoint: CheckpointInfo) -> str | None:
    """Returns the fingerprint of the comparison; None without one."""
    if not is_known(recipe, checkpoint):
        return None
    return str(read_json(recipe.data_directory / STAGE / MANIFEST)["fingerprint"])


def load(recipe: Recipe, checkpoint: CheckpointInfo) -> Touched | None:
    """Loads the items that training documents touch; None where nothing is known.

    A set that has changed since the comparison is left out: its new items were not compared, and would count as clean.
    """
    if not is_known(recipe, checkpoint):
        return None
    from data_prep.decontamination.decontaminate import load_touched
    from data_prep.decontamination.evaluation_sets import changed_sets
    from data_prep.sources.places import place_identity

    touched = load_touched(recipe.data_directory)
    if touched is None:
        return None
    compared = read_json(recipe.data_directory / STAGE / MANIFEST).get("inputs", {}).get("sets", {})
    changed = changed_sets(recipe, compared, place_identity)
    for name in sorted(changed):
        note(f"{name} has changed since the training data was compared with it: no scores of clean and touched items")
    unchanged = {name: keys for name, keys in touched.keys.items() if not changed & {name, name.partition("/")[0]}}
    return replace(touched, keys=unchanged)


def split(touched: Touched | None, name: str, items: Sequence[Sequence[str]]) -> dict[str, Mask]:
    """Returns masks `clean` and `touched` over the items of a set; empty if all items are of one kind.

    Args:
        touched: the result of `load`.
        name: name of the set, such as `benchmark/piqa`.
        items: the passages of each item, as decontamination compared them.
    """
    from data_prep.decontamination.evaluation_sets import item_key

    keys = touched.keys.get(name) if touched is not None else None
    if not keys:
        return {}
    mask = np.array([item_key(passages) in keys for passages in items], dtype=bool)
    return {"clean": ~mask, "touched": mask} if 0 < mask.sum() < len(mask) else {}


def labelled(results: Sequence[Result], part: str) -> list[Result]:
    """Renames the results of one part of a set, and adds a note on the part."""
    remark = {
        "clean": "items that share no n-gram with a training document",
        "touched": "items that share an n-gram with a document of the training data before decontamination",
    }[part]
    return [
        replace(result, name=f"{result.name}/{part}", note="; ".join(filter(None, [remark, result.note])))
        for result in results
    ]


def facts(touched: Touched | None) -> dict[str, Any]:
    """Returns the entry of `results.json` on contamination: action and counts of each set."""
    return {} if touched is None else {"contamination": {"action": touched.action, "sets": touched.sets}}

"""A directory with scores and their items, as a run or a CI artifact has them, made up in a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.items.item import Item, hash_of
from eval.items.store import write_items
from eval.results import Result
from tests.parts.fake_run import fake_results


def right_or_wrong(
    task: str, right: Sequence[float], names: Sequence[str] | None = None, metric: str = "acc"
) -> list[Item]:
    """Items of a benchmark; `names` tell one question from another."""
    names = [f"question {number}" for number in range(len(right))] if names is None else names
    return [
        Item(str(number), hash_of(task, name), name, task, measures={metric: (float(value), 1.0)})
        for number, (name, value) in enumerate(zip(names, right, strict=True))
    ]


def documents(bits: Sequence[float], size: float = 1000.0, name: str = "document") -> list[Item]:
    """Documents of a perplexity set, each of as many bytes, at this many bits per byte and 4 bytes a token."""
    return [
        Item(
            str(number),
            hash_of(f"{name} {number}"),
            f"{name} {number}",
            measures={
                "bits_per_byte": (float(value) * size, size),
                "nats_per_token": (float(value) * size * float(np.log(2)), size / 4),
            },
        )
        for number, value in enumerate(bits)
    ]


def score(name: str, items: Sequence[Item], metric: str = "acc", **more: Any) -> Result:
    """A score of items, with an interval that only its width matters of."""
    above, below = (sum(item.measures[metric][side] for item in items) for side in (0, 1))
    higher = metric == "acc"
    value = above / below
    given = {"set": "s", "low": value - 0.05, "high": value + 0.05, "unit": metric, "higher_is_better": higher, **more}
    return Result(name, value, n=len(items), interval="Wilson", **given)


def write_scores(
    directory: Path, parts: dict[str, Sequence[Item]], results: Sequence[Result], stamp: str = "f", **more: Any
) -> Path:
    """Writes results.json and the items of each part, under a fingerprint that both name."""
    for part, items in parts.items():
        write_items(directory / "scores", part, stamp, items)
    own = {part: stamp for part, items in parts.items() if items}
    replace(fake_results(), results=list(results), items=own, **more).save(directory)
    return directory

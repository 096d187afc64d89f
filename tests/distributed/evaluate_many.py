"""Evaluates several runs in this process, as one rank of however many were started.

Each file is JSON: the run, and settings that replace its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eval.reading import opening
from eval.reading.opening import Place
from eval.suite import evaluate
from pretrain.parallel.collectives import gather
from pretrain.parallel.lockstep import Lockstep
from pretrain.parallel.ranks import Ranks


def main(ranks: Ranks, files: list[Path]) -> None:
    for file in files:
        order = json.loads(file.read_text(encoding="utf-8"))
        place = Place(Lockstep(ranks.rank, ranks.count, gather, ranks.local_rank))
        loaded: list[int] = []
        with noted(loaded):
            evaluate(Path(order["run"]), order["overrides"], progress=False, place=place)
        assert len(loaded) == ("evaluation.divide_weights=true" in order["overrides"])


@contextmanager
def noted(loaded: list[int]) -> Iterator[None]:
    """Notes each model whose weights are divided."""
    load = opening.load_divided

    def load_and_note(*given: Any) -> Any:
        loaded.append(1)
        return load(*given)

    opening.load_divided = load_and_note
    try:
        yield
    finally:
        opening.load_divided = load

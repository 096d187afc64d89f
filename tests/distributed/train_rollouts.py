"""Trains several recipes whose rewards lie beside them, in this process, as one rank of however many were started."""

from __future__ import annotations

from pathlib import Path

from configs.safety.trust import trusting
from configs.schema.recipe import load
from pretrain.parallel.ranks import Ranks
from pretrain.session import run


def main(ranks: Ranks, files: list[Path]) -> None:
    """Writes nothing but what training writes."""
    for file in files:
        with trusting([file.parent]):
            run(load(file))

"""Trains several recipes one after the other in this process, as one rank of however many were started."""

from __future__ import annotations

import sys
from pathlib import Path

from configs.schema.recipe import load
from pretrain.metrics.evaluated import find_evaluator
from pretrain.parallel.ranks import Ranks
from pretrain.session import run

COMPILER = "torch._inductor.compile_fx"


def main(ranks: Ranks, files: list[Path]) -> None:
    """Writes nothing but what training writes."""
    had_compiler = COMPILER in sys.modules
    for file in files:
        recipe = load(file)
        run(recipe, make_evaluator=find_evaluator(recipe))
        had_compiler |= recipe.train.compile is True
    assert had_compiler or COMPILER not in sys.modules, "the compiler takes seconds to load, and nothing is compiled"

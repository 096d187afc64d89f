"""Trains several recipes one after the other in this process, as one rank of however many were started."""

from __future__ import annotations

import sys
from pathlib import Path

from configs.schema.recipe import load
from pretrain.metrics.evaluated import find_evaluator
from pretrain.parallel.ranks import Ranks
from pretrain.session import run

COMPILER, TRACER = "torch._inductor.compile_fx", "torch._dynamo"


def main(ranks: Ranks, files: list[Path]) -> None:
    """Writes nothing but what training writes."""
    had_compiler, had_tracer = COMPILER in sys.modules, TRACER in sys.modules
    for file in files:
        recipe = load(file)
        run(recipe, make_evaluator=find_evaluator(recipe))
        had_compiler |= recipe.train.compile is True
        # What ranks that share matrices or rows call in torch loads half of the compiler.
        had_tracer |= had_compiler or max(recipe.train.parallel.tensor, recipe.train.parallel.sequence) > 1
    for name, loaded in ((COMPILER, had_compiler), (TRACER, had_tracer)):
        assert loaded or name not in sys.modules, f"{name} takes seconds to load, and nothing is compiled"

"""Trains several recipes one after the other in this process, as one rank of however many were started.

One launch for many configurations, because starting processes and importing torch and DeepSpeed costs most of a test.
Arguments: recipe files. Writes nothing but what training writes.
"""

from __future__ import annotations

import gc
import sys

from configs.schema.recipe import load
from pretrain.engine.engine import connected
from pretrain.parallel.ranks import find_ranks
from pretrain.session import run

if __name__ == "__main__":
    gc.freeze()  # torch's and DeepSpeed's objects: each run would walk over them
    recipes = [load(file) for file in sys.argv[1:]]
    with connected(find_ranks()):  # once: gloo cannot join twice through the same port
        for recipe in recipes:
            run(recipe)
    if not any(recipe.train.compile is True for recipe in recipes):
        assert "torch._inductor.compile_fx" not in sys.modules, "the compiler takes seconds to load"

"""As one rank of several: what is allocated at most while a ZeRO-3 model gets its memory, beside the whole model.

Arguments: a recipe file. Prints the share of the model's bytes that this rank held at most before DeepSpeed's engine.
"""

from __future__ import annotations

import sys
from itertools import accumulate
from typing import Any

import deepspeed
from torch.profiler import ProfilerActivity, profile

from configs.recipe import load
from pretrain.engine import Engine, connected
from pretrain.objectives.language_modelling import LanguageModelling
from pretrain.ranks import find_ranks
from pretrain.session import build_model


class Partitioned(Exception):
    """The model is in pieces; what follows makes the optimizer."""


def stop(**_: Any) -> None:
    raise Partitioned


if __name__ == "__main__":
    recipe, ranks = load(sys.argv[1]), find_ranks()
    deepspeed.initialize = stop
    with connected(ranks) as device, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        model = build_model(recipe, 257, device)
        whole = 4 * sum(parameter.numel() for parameter in model.parameters())
        try:
            Engine(recipe, LanguageModelling(model), ranks, device)
        except Partitioned:
            pass
        else:
            raise AssertionError("DeepSpeed was not called")
    assert seen.profiler is not None and seen.profiler.kineto_results is not None
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    share = max(accumulate(event.nbytes() for event in events)) / whole
    assert 1 / ranks.count <= share < 0.65, f"rank {ranks.rank} held {share:.2f} of the model"

"""As one rank of several: how much memory grows at most while a ZeRO-3 model gets its weights, beside its size.

Arguments: a recipe file. Fails when this rank held all of the model, or nearly, before DeepSpeed's engine.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import deepspeed

from configs.schema.recipe import load
from pretrain.engine.connection import connected
from pretrain.engine.engine import Engine
from pretrain.objectives.language_modelling import LanguageModelling
from pretrain.parallel.ranks import find_ranks
from pretrain.session import build_model


class Partitioned(Exception):
    """The model is in pieces; what follows makes the optimizer."""


def stop(**_: Any) -> None:
    raise Partitioned


def resident(peak: bool = False) -> int:
    """Bytes of this process in memory, now or at most since `forget_peak`.

    Torch's memory profiler would not do: it misses what gloo's threads free, so that its sum grows by chance.
    """
    key = "VmHWM:" if peak else "VmRSS:"
    return 1024 * next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)
    )


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    M_MMAP_THRESHOLD = -3  # malloc.h; what is freed goes back to the system at once
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    recipe, ranks = load(sys.argv[1]), find_ranks()
    deepspeed.initialize = stop
    with connected(ranks) as device:
        model = build_model(recipe, 257, device)
        whole = 4 * sum(parameter.numel() for parameter in model.parameters())
        forget_peak()
        before = resident()
        try:
            Engine(recipe, LanguageModelling(model), ranks, device)
        except Partitioned:
            pass
        else:
            raise AssertionError("DeepSpeed was not called")
    share = (resident(peak=True) - before) / whole
    assert 1 / ranks.count <= share < 0.6, f"rank {ranks.rank} held {share:.2f} of the model"

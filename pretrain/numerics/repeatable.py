"""Makes a run repeatable bit for bit where it can, and says how far that goes.

What is not repeatable by itself: additions in the order in which threads come to them. On CPUs the compiler scatters
the embedding's gradient with atomic additions; on GPUs scattered additions, FlashAttention's backward pass and cuBLAS
with several streams do the same. `torch.use_deterministic_algorithms` has another way for each, and is part of the key
under which compiled code is cached.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from configs.schema.train import Train

# cuBLAS is repeatable with buffers of its own for each stream (CUDA's manual, "Results reproducibility").
_CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
_COMPILER = "torch._inductor.config"


def is_deterministic(train: Train, device: torch.device) -> bool:
    """`train.deterministic`, with `auto` decided: on CPUs, where it cost 3 to 4% of a step (docs/benchmarks.md)."""
    return device.type == "cpu" if train.deterministic == "auto" else train.deterministic


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Makes torch use deterministic algorithms only, while open; put it around all compilation and computation.

    An operation that has none raises torch's `RuntimeError`, which names it.
    """
    if not enabled:
        yield
        return
    given = os.environ.get(_CUBLAS[0])
    os.environ.setdefault(*_CUBLAS)  # before the first product on a GPU
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    switches: Any = torch.utils.deterministic  # whose attribute is a property of its class
    filled = switches.fill_uninitialized_memory
    with _told_to_the_compiler():
        _use(True, warn_only=False)
        switches.fill_uninitialized_memory = False  # a search for mistakes, which costs time
        try:
            yield
        finally:
            _use(before[0], warn_only=before[1])
            switches.fill_uninitialized_memory = filled
            if given is None:
                os.environ.pop(_CUBLAS[0], None)


def _use(mode: bool, warn_only: bool) -> None:
    """`torch.use_deterministic_algorithms`, which would load the whole compiler to tell it: 1.7 s of CPU time."""
    if _COMPILER in sys.modules:
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
    else:
        torch.set_deterministic_debug_mode("default" if not mode else "warn" if warn_only else "error")


@contextmanager
def _told_to_the_compiler() -> Iterator[None]:
    """A compiler that is loaded while open finds out by a variable, which it reads once."""
    name, given = "TORCHINDUCTOR_DETERMINISTIC", os.environ.get("TORCHINDUCTOR_DETERMINISTIC")
    os.environ[name] = "1"
    try:
        yield
    finally:
        if given is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = given


def promise(deterministic: bool, device: torch.device, threads: int, ranks: int) -> str:
    """Says how far a run repeats bit for bit, in one sentence without a full stop."""
    where = f"{ranks} rank{'s' * (ranks != 1)} of {threads} thread{'s' * (threads != 1)}"
    if not deterministic:
        return "not promised to repeat bit for bit: train.deterministic is off, and additions may come in any order"
    if device.type != "cpu":
        return (
            f"deterministic algorithms only ({ranks} rank{'s' * (ranks != 1)}); that this repeats bit for bit on GPUs "
            "is torch's promise, which this project has not measured"
        )
    return (
        f"repeats bit for bit, killed and resumed or not, with {where}, this recipe, data and software, on CPUs of "
        "this kind"
    )

"""Decides whether torch.compile pays, where its results are kept, and leaves it out where nothing is compiled."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

from configs.common.notices import say
from configs.schema.objectives import unit_of
from configs.schema.train import Train

# Compilation takes some half a minute. A run pays for it from about this many operations a rank on: five minutes of two
# cores, two of a large GPU. A fixed number and no measurement, so that a run decides the same whenever it resumes.
PAYS_FROM_FLOPS = {"cpu": 1e13, "cuda": 2e16}
_PLACE = "TORCHINDUCTOR_CACHE_DIR"


def pays_to_compile(train: Train, kind: str, flops_per_rank: float) -> bool:
    """`train.compile`, with `auto` decided where there is a compiler: for long runs at ZeRO stages 0 to 2.

    Not for pairs and answers: their micro-batches have many widths, and each new one may compile again.

    Args:
        train: the section.
        kind: of device, as torch calls it: cpu or cuda.
        flops_per_rank: forward and backward of the whole run.
    """
    if train.compile != "auto":
        return train.compile
    pays = kind in PAYS_FROM_FLOPS and flops_per_rank >= PAYS_FROM_FLOPS[kind]
    of_one_width = unit_of(train.objective) in ("document", "conversation")
    return pays and of_one_width and train.zero.stage < 3 and train.parallel.tensor == 1


def should_compile(train: Train, device: torch.device, flops_per_rank: float) -> bool:
    """`pays_to_compile` here, where `auto` also needs an installed compiler; warns of `true` at ZeRO-3."""
    if train.compile is True and train.zero.stage == 3:
        say(
            "train.compile at ZeRO-3: DeepSpeed's hooks cut the graph at every module, which costs minutes of "
            "compilation and gains little; stages 0 to 2 compile whole"
        )
    return pays_to_compile(train, device.type, flops_per_rank) and (train.compile is True or _can_compile(device))


def _can_compile(device: torch.device) -> bool:
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return bool(has_triton())
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)


def keep_compiled() -> None:
    """Puts the compiler's cache into the user's cache directory; call before the first compilation.

    torch's own place is a temporary directory, which batch systems empty after a job.
    """
    import torch._functorch.config as functorch
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt-replica" / "compiled"
    # torch writes its own place into the environment when it is first asked for it.
    # It hands paths to the C++ compiler without quotes, so a place with a blank in its name would compile nothing.
    if os.environ.get(_PLACE) in (None, default_cache_dir()) and len(str(cache).split()) == 1:
        os.environ[_PLACE] = str(cache)
    # Attention's own gradient keeps nothing beside what the compiler sees; without this nothing of the model would be
    # taken from the cache, and every start would trace it again (6 s for six layers).
    name = "autograd_cache_allow_custom_autograd_functions"
    if hasattr(functorch, name):
        setattr(functorch, name, True)


# torch (`torch._compile`) and DeepSpeed wrap functions that must never be compiled: those of optimizers and of ZeRO-3.
# Such a wrapper loads torch's whole compiler when it is first called, 1.4 s of CPU time, to mark the function. It asks
# for the mark first. A torch without these names loads the compiler, and no more.
_MARK = "__dynamo_disable"
_WRAPPED_BY = ("torch.optim", "deepspeed.")


@contextmanager
def compiler_left_out(uncompiled: bool) -> Iterator[None]:
    """Keeps the start of an engine, and what it calls later, from loading the compiler when nothing is compiled.

    Args:
        uncompiled: the engine compiles nothing; False takes back what an earlier engine of this process left.
    """
    if not uncompiled or "torch._dynamo" in sys.modules:
        for plain in _never_compiled():
            if vars(plain).get(_MARK) is plain:
                delattr(plain, _MARK)
        yield
        return
    for plain in _never_compiled():
        if _MARK not in vars(plain):
            setattr(plain, _MARK, plain)
    disable = torch.compiler.disable
    torch.compiler.disable = lambda function=None, *_, **__: function or (lambda later: later)
    try:
        yield
    finally:
        torch.compiler.disable = disable


def _never_compiled() -> list[Callable[..., Any]]:
    """The functions of optimizers and of DeepSpeed that torch's wrapper keeps from being compiled."""
    wrap = getattr(torch, "_disable_dynamo", None)
    if wrap is None:
        return []
    code = wrap(lambda: None).__code__
    modules = [module for name, module in sys.modules.items() if name.startswith(_WRAPPED_BY)]
    places = [*modules, *(value for module in modules for value in vars(module).values() if isinstance(value, type))]
    values = [value for place in places for value in vars(place).values()]
    guarded: list[Any] = [value for value in values if isinstance(value, FunctionType) and value.__code__ is code]
    return [function.__wrapped__ for function in guarded]

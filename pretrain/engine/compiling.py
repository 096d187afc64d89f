"""Decides whether torch.compile pays, and where its results are kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

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

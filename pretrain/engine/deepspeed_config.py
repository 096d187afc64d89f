"""Derives DeepSpeed's configuration from the recipe. Does not import it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from configs.schema.batch_plan import BatchPlan
from configs.schema.deepspeed_keys import check_deepspeed
from configs.schema.model import Model
from configs.schema.recipe import Recipe
from configs.schema.train import Zero
from pretrain.model.float8 import float8_problem
from pretrain.parallel.tensor import layer_cuts

BF16 = frozenset({"bf16", "fp8"})  # precisions whose weights and gradients are bf16's


def resolve_precision(setting: str, device: torch.device) -> str:
    """`auto` to what the device computes in: bf16 or fp32.

    Raises:
        ValueError: for fp16 on a CPU, for bf16 on a GPU without it, and for fp8 on any device without it.
    """
    if setting == "fp8" and (problem := float8_problem(device)):
        raise ValueError(f"train.precision fp8: {problem}; or use bf16 or auto")
    if device.type == "cpu":
        if setting == "fp16":
            raise ValueError("train.precision fp16 needs a GPU; use bf16, fp32 or auto on a CPU")
        return setting if setting != "auto" else "bf16" if cpu_computes_bf16() else "fp32"
    if setting == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError("train.precision bf16: this GPU does not compute in it; use fp16, fp32 or auto")
    if setting == "auto":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return setting


def cpu_computes_bf16() -> bool:
    """Tells whether this CPU multiplies bf16 in hardware (AVX512-BF16, AMX, or Arm's BF16)."""
    cpuinfo = Path("/proc/cpuinfo")
    words = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.is_file() else set()
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def deepspeed_config(recipe: Recipe, plan: BatchPlan, precision: str) -> dict[str, Any]:
    """DeepSpeed's configuration: derived from the recipe, with the recipe's `deepspeed` mapping on top.

    Raises:
        ValueError: when that mapping sets something that the recipe says elsewhere.
    """
    train = recipe.train
    # 0.19.8's half precision at stage 0 (FP16_UnfusedOptimizer) strays from the reference tenfold farther than stages 1
    # to 3. fp16 takes stage 1, the same step with less memory; bf16 runs on fp32 weights under autocast (`Engine`).
    stage = 1 if train.zero.stage == 0 and precision == "fp16" else train.zero.stage
    derived: dict[str, Any] = {
        # To DeepSpeed all ranks are data-parallel, those that share a row too.
        "train_batch_size": plan.micro_batch * plan.accumulation * plan.ranks,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        # Without ZeRO, DeepSpeed neither reports the norm nor clips by it in fp32: `Engine` does.
        "gradient_clipping": train.grad_clip if stage else 0.0,
        "zero_optimization": {"stage": stage} | ({"compute_grad_norm": True} if stage else {}),
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,  # ours is tested here
        "steps_per_print": None,
    }
    if precision in BF16 and stage:
        derived["bf16"] = {"enabled": True, "check_grad_overflow": True}  # or a NaN in the gradient would be applied
        # Micro-batches add up in fp32: bf16 sums lose small gradients (DeepSpeed #1800).
        derived["data_types"] = {"grad_accum_dtype": "fp32"}
    if precision == "fp16":
        derived["fp16"] = {"enabled": True}
    derived["zero_optimization"].update(_offload(train.zero, stage))
    if train.parallel.tensor > 1:
        derived["tensor_parallel"] = _tensor_section(recipe.model, train.parallel.tensor)
    check_deepspeed(recipe.deepspeed)
    return _merged(derived, recipe.deepspeed, "deepspeed")


def _offload(zero: Zero, stage: int) -> dict[str, Any]:
    """ZeRO-Offload (arXiv:2101.06840) of what the recipe names."""
    found = {}
    for name, key, stages in (
        ("offload_optimizer", "offload_optimizer", (1, 2, 3)),
        ("offload_parameters", "offload_param", (3,)),
    ):
        if getattr(zero, name) == "none":
            continue
        if stage not in stages:
            needed = " or ".join(map(str, stages))
            raise ValueError(f"train.zero.{name} needs train.zero.stage {needed}, not {stage}")
        # Only memory that a GPU copies from gains by being pinned; pinned memory cannot be paged out.
        found[key] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return found


def _tensor_section(model: Model, parts: int) -> dict[str, Any]:
    """AutoTP told how to divide the layers, instead of guessing by their names.

    Norms of heads and shares of values see a rank's own heads alone: their gradients are added up.
    """
    layers = []
    for cut in layer_cuts(model):
        layer: dict[str, Any] = {"patterns": [rf".*\.{re.escape(cut.name)}\.weight$"]}
        if cut.sections is None:
            layer["partition_type"] = "row"
        else:
            layer |= {"partition_type": "column", "partition_dim": 0, "shape": [cut.sections, model.hidden_size]}
        layers.append(layer)
    of_heads = [r".*\.attention\.[qk]_norm\.weight$", r".*\.attention\.value_mix\.weight$"]
    layers.append({"patterns": of_heads, "partition_type": "skip", "grad_allreduce": True})
    return {"autotp_size": parts, "partition_config": {"use_default_specs": False, "layer_specs": layers}}


def _merged(derived: dict[str, Any], extra: dict[str, Any], path: str) -> dict[str, Any]:
    merged = dict(derived)
    for key, value in extra.items():
        if isinstance(value, dict) and isinstance(derived.get(key, {}), dict):
            merged[key] = _merged(derived.get(key, {}), value, f"{path}.{key}")
        elif key in derived and derived[key] != value:
            raise ValueError(
                f"{path}.{key}: {value!r} clashes with {derived[key]!r}, which follows from the recipe's own settings; "
                "drop it here and change the recipe's setting"
            )
        else:
            merged[key] = value
    return merged

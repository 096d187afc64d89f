"""Lists the private names of DeepSpeed that this project uses, and checks that the installed version has them.

DeepSpeed has no public call to find where ZeRO keeps a weight, to discard an update, or to forget its process groups.
Whatever reaches past its public interface is listed here, with its purpose, and looked up once when an engine starts.
A name that is missing ends the start: a version that renamed one would otherwise make updates that were refused.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from enum import StrEnum
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import nn

# The versions that the tests have run with, oldest first. constraints.txt installs the last one.
TRIED = ("0.19.8",)


class UnknownDeepSpeed(ValueError):
    """The installed DeepSpeed does not have, or does not use, what this project relies on."""

    def __init__(self, problems: Iterable[str]) -> None:
        super().__init__(
            f"DeepSpeed {version('deepspeed')} does not work with this project (versions tried: {', '.join(TRIED)}): "
            f"{'; '.join(problems)}. Install a version that was tried: pip install deepspeed=={TRIED[-1]}"
        )


class Layout(StrEnum):
    """The buffers in which DeepSpeed keeps weights to update, by the name of its optimizer class."""

    WHOLE = "Optimizer"  # ZeRO stage 0: torch's own, over the parameters themselves
    FLAT = "DeepSpeedZeroOptimizer"  # stages 1 and 2: a flat fp32 buffer for each parameter group
    FLAT_BF16 = "BF16_Optimizer"  # stage 1 in bf16 with gradient sums in fp32: flat buffers too
    SUBGROUPS = "DeepSpeedZeroOptimizer_Stage3"  # stage 3: several flat buffers for each parameter group


class PrivateName(NamedTuple):
    """An attribute that DeepSpeed does not document."""

    owner: str  # a module, or one of the objects of `check_engine`
    name: str
    purpose: str  # completes "training uses it to …"


_FIND_WEIGHTS = "find the fp32 weights and moments of a parameter"
_DISCARD = "discard an update that was refused"
_FORGET = "forget the groups of tensor parallelism when an engine is closed"

# Looked up on a CPU alone: DeepSpeed then finds out which of its operations this machine could compile.
COMPATIBLE_OPS = PrivateName(
    "deepspeed.ops", "__compatible_ops__", "start on a CPU without compiling an all-reduce for a minute"
)
IMPORTED = (
    PrivateName("deepspeed.utils.groups", "mpu", _FORGET),
    PrivateName("deepspeed.utils.groups", "_TENSOR_MODEL_PARALLEL_GROUP", _FORGET),
    PrivateName("deepspeed.utils.groups", "_MODEL_PARALLEL_GROUP", _FORGET),
    PrivateName("deepspeed.utils.groups", "_DATA_PARALLEL_GROUP", _FORGET),
    PrivateName("deepspeed.runtime.utils", "clip_grad_norm_", "clip gradients with tensor parallelism at ZeRO stage 0"),
)
# For `replica plan` alone, which starts no engine.
ESTIMATORS = (
    PrivateName(
        "deepspeed.runtime.zero.stage_1_and_2", "estimate_zero2_model_states_mem_needs", "compare memory estimates"
    ),
    PrivateName("deepspeed.runtime.zero.stage3", "estimate_zero3_model_states_mem_needs", "compare memory estimates"),
)
# Imported ahead of DeepSpeed to save two seconds; a version that keeps it elsewhere starts more slowly, and no more.
OWN_MUON = "deepspeed.runtime.zero.muon.muon_optimizer"

_ENGINE = (
    PrivateName("engine", "enable_backward_allreduce", "leave out the all-reduce where one rank trains alone"),
    PrivateName("engine", "get_global_grad_norm", "find out whether the gradient is finite"),
    PrivateName("engine", "was_step_applied", "find out whether an update was made"),
    PrivateName("engine", "mpu", "clip gradients with tensor parallelism at ZeRO stage 0"),
)
_FLAT_PARAMETERS = (
    PrivateName("parameter", "_hp_mapping", _FIND_WEIGHTS),
    PrivateName("mapping", "param_group_index", _FIND_WEIGHTS),
    PrivateName("mapping", "hp_fragment_address.start", _FIND_WEIGHTS),
    PrivateName("mapping", "hp_fragment_address.numel", _FIND_WEIGHTS),
    PrivateName("mapping", "lp_fragment_address.start", _FIND_WEIGHTS),
)
# Methods are looked for in the class: an attribute of the object hides them for one step.
_OF_LAYOUT: dict[Layout, tuple[PrivateName, ...]] = {
    Layout.WHOLE: (),
    Layout.FLAT: (
        PrivateName("optimizer class", "check_overflow", _DISCARD),
        PrivateName("optimizer", "check_grad_overflow", _DISCARD),
        PrivateName("optimizer", "overflow", _DISCARD),
        PrivateName("optimizer", "loss_scaler", "keep the loss scale when an update is discarded"),
        PrivateName("optimizer", "optimizer", _DISCARD),
        *_FLAT_PARAMETERS,
    ),
    Layout.FLAT_BF16: (
        PrivateName("optimizer class", "step", _DISCARD),
        PrivateName("optimizer class", "clear_hp_grads", _DISCARD),
        PrivateName("optimizer class", "clear_lp_grads", _DISCARD),
        PrivateName("optimizer", "overflow", _DISCARD),
        PrivateName("optimizer", "optimizer", _DISCARD),
        *_FLAT_PARAMETERS,
    ),
    Layout.SUBGROUPS: (
        PrivateName("optimizer class", "_overflow_check_and_loss_scale_update", _DISCARD),
        PrivateName("optimizer", "overflow", _DISCARD),
        PrivateName("optimizer", "loss_scaler", "keep the loss scale when an update is discarded"),
        PrivateName("optimizer", "optimizer", _DISCARD),
        PrivateName("optimizer", "fp32_partitioned_groups_flat", _FIND_WEIGHTS),
        PrivateName("optimizer", "grad_position", _FIND_WEIGHTS),
        PrivateName("optimizer class", "get_param_id", _FIND_WEIGHTS),
        PrivateName("optimizer class", "_get_param_partition_rank", _FIND_WEIGHTS),
        PrivateName("parameter", "ds_numel", _FIND_WEIGHTS),
        PrivateName("parameter", "ds_tensor.ds_numel", _FIND_WEIGHTS),
        PrivateName("parameter", "convert_to_zero_parameters", "divide a model that is too large for one rank"),
    ),
}


def names_of(layout: Layout) -> tuple[PrivateName, ...]:
    """The names that an engine with this layout must have."""
    return _ENGINE + _OF_LAYOUT[layout]


def imported(module: str, name: str) -> Any:
    """The private `name` of a module of DeepSpeed.

    Raises:
        UnknownDeepSpeed: when the module or the name is missing.
    """
    listed = next(item for item in (COMPATIBLE_OPS, *IMPORTED, *ESTIMATORS) if item[:2] == (module, name))
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UnknownDeepSpeed([_missing(module, listed)]) from error


def check_imported() -> None:
    """Raises `UnknownDeepSpeed` when a module lacks a private name that training uses."""
    for item in IMPORTED:
        imported(item.owner, item.name)


def forget_tensor_groups() -> None:
    """Lets the next engine of this process make its own groups of tensor parallelism."""
    for item in IMPORTED:
        if item.purpose == _FORGET:
            setattr(importlib.import_module(item.owner), item.name, None)


def find_layout(engine: Any, stage: int) -> Layout:
    """The layout of a DeepSpeed engine at this ZeRO stage.

    Raises:
        UnknownDeepSpeed: when its optimizer is of a class that was not tried at this stage.
    """
    expected = {0: (Layout.WHOLE,), 1: (Layout.FLAT, Layout.FLAT_BF16), 2: (Layout.FLAT,), 3: (Layout.SUBGROUPS,)}
    classes = [cls.__name__ for cls in type(engine.optimizer).__mro__]
    found = next((layout for layout in expected[stage] if layout.value in classes), None)
    if found is None or (found is Layout.WHOLE) != isinstance(engine.optimizer, torch.optim.Optimizer):
        wanted = " or ".join(layout.value for layout in expected[stage])
        raise UnknownDeepSpeed([f"at ZeRO stage {stage} its optimizer is a {classes[0]}, not a {wanted}"])
    return found


def check_engine(engine: Any, stage: int, parameters: Iterable[nn.Parameter]) -> Layout:
    """Looks every private name up that training with this engine uses; returns its layout.

    Raises:
        UnknownDeepSpeed: naming all that are missing, and what they are for.
    """
    layout = find_layout(engine, stage)
    parameters = list(parameters)
    mappings = (getattr(parameter, "_hp_mapping", None) for parameter in parameters)
    owners = {
        "engine": engine,
        "optimizer": engine.optimizer,
        "optimizer class": type(engine.optimizer),
        "parameter": parameters[0],
        "mapping": next((mapping for mapping in mappings if mapping is not None), None),  # a rank may hold padding only
    }
    problems = [
        _missing(f"its {item.owner} ({_class_of(owners[item.owner])})", item)
        for item in names_of(layout)
        if owners[item.owner] is not None and not _has(owners[item.owner], item)
    ]
    if problems:
        raise UnknownDeepSpeed(problems)
    return layout


def _has(owner: Any, item: PrivateName) -> bool:
    for name in item.name.split("."):
        if not hasattr(owner, name):
            return False
        owner = getattr(owner, name)
    return item.owner != "optimizer class" or callable(owner)


def _class_of(owner: Any) -> str:
    return owner.__name__ if isinstance(owner, type) else type(owner).__name__


def _missing(where: str, item: PrivateName) -> str:
    return f"{where} has no `{item.name}`, which training uses to {item.purpose}"

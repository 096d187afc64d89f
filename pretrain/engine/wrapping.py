"""Hands a model and its optimizer to DeepSpeed."""

from __future__ import annotations

import importlib
import io
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import nn

from pretrain.engine.deepspeed_private import OWN_MUON
from pretrain.model.meta_device import to_empty
from pretrain.parallel.fragments import remember_shapes


def wrap(module: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
    """DeepSpeed's engine of a model with this optimizer."""
    import deepspeed

    _import_muon()
    with redirect_stdout(io.StringIO()):  # it prints memory figures there
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    return engine


def partition(module: nn.Module, config: dict[str, Any], precision: str, device: torch.device) -> None:
    """Gives memory to a model on the meta device, one layer after the other, each divided between the ranks at once."""
    import deepspeed

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    first: Any = None
    for part in module.modules():
        if next(part.parameters(recurse=False), None) is not None:
            to_empty(part.to(dtype), device, recurse=False)
            parameters = list(part.parameters(recurse=False))  # others: those on the meta device cannot leave it
            remember_shapes(parameters)
            if first is None:
                deepspeed.zero.Init(module=part, config_dict_or_path=config, dtype=dtype)
                first = parameters[0]
            else:
                first.convert_to_zero_parameters(param_list=parameters)


def _import_muon() -> None:
    """Imports DeepSpeed's own Muon without compiling it, before `deepspeed.initialize` imports it.

    DeepSpeed imports that optimizer only to ask whether ours is one. The import passes functions to `torch.compile`,
    which loads the whole compiler: two seconds of every start.
    """
    compile_function = torch.compile
    torch.compile = lambda function: function  # type: ignore[assignment]
    try:
        importlib.import_module(OWN_MUON)
    except ImportError:  # a DeepSpeed that keeps it elsewhere: the start takes longer
        pass
    finally:
        torch.compile = compile_function

"""Gives memory to modules that were made on the meta device."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def to_empty(module: Module, device: torch.device | str, recurse: bool = True) -> Module:
    """`module.to_empty`: memory on the device for all weights, values undefined; returns the module.

    torch would load its symbolic shapes, a second of every start, to lay out dense tensors as they are already.
    """
    apply: Any = module._apply
    apply(lambda old: torch.empty(old.shape, dtype=old.dtype, device=device), recurse=recurse)
    return module

"""Trains in fp8 (`train.precision: fp8`): in bf16, with the products of the blocks' linear layers in fp8 by torchao.

Before each product both operands are divided by their largest absolute value, one scale a tensor, found anew each time;
values and weights are e4m3, gradients e5m2 (Micikevicius et al., arXiv:2209.05433). Embeddings, head, norms and
attention stay in bf16. Parameters keep their names, shapes and dtypes: optimizers, ZeRO, checkpoints and exports see no
difference.
"""

from __future__ import annotations

import importlib.util
import logging

import torch
from torch import nn

LEAST_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0
_INSTALL = "pip install 'torchao>=0.18'"


def float8_problem(device: torch.device) -> str | None:
    """The reason why this device cannot train in fp8, and what would help; None when it can."""
    needed = "an NVIDIA GPU of compute capability {}.{} or higher (Ada, Hopper and newer)".format(*LEAST_CAPABILITY)
    if device.type != "cuda":
        return f"it needs {needed}, and this is a {device.type.upper()}"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return f"it needs {needed}; {torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}"
    if importlib.util.find_spec("torchao") is None:
        return f"it needs torchao, which is not installed; run `{_INSTALL}`"
    return None


def use_float8(model: nn.Module, emulate: bool = False) -> None:
    """Turns the linear layers of a model's blocks into torchao's, in place; their parameters stay the same objects.

    `emulate`: operands are rounded to fp8 and multiplied in fp32, on any device.

    Raises:
        ValueError: when torchao cannot be imported.
    """
    # Said at every import: about kernels for inference that lack their libraries, and about torch's newer interfaces.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise ValueError(
            f"train.precision fp8: torchao cannot be imported ({error}); run `{_INSTALL}`, or use bf16"
        ) from error

    def inside_blocks(module: nn.Module, name: str) -> bool:
        return name.startswith("blocks.")

    config = Float8LinearConfig(emulate=emulate)
    convert_to_float8_training(model, config=config, module_filter_fn=inside_blocks)


def float8_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that `use_float8` turned into torchao's; none where torchao was not asked for."""
    return [module for module in model.modules() if type(module).__name__ == "Float8Linear"]

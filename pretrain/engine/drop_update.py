"""What DeepSpeed offers no call for: letting go of a step's gradients, and whose gradients are no numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def drop_update(engine: Any, stage: int) -> None:
    """Ends a step after its last backward pass as if it had not been: weights, moments, counters and scale stay.

    ZeRO's own way out of an overflow does it. Without ZeRO, an optimizer passes over parameters without a gradient.
    """
    optimizer = engine.optimizer
    if stage == 0:
        for parameter in engine.module.parameters():
            parameter.grad = None
        engine.step()
        return
    if not hasattr(optimizer, "loss_scaler"):  # BF16_Optimizer, of ZeRO-1 in bf16 with sums in fp32
        _step_without_update(engine, optimizer)
        return
    scale = dict(vars(optimizer.loss_scaler))

    def overflow(*_: object, **__: object) -> bool:
        optimizer.overflow = True
        return True

    # Methods of the class, hidden for one step by attributes of the object.
    hidden = {"_overflow_check_and_loss_scale_update": overflow} if stage == 3 else {"check_overflow": overflow}
    settings = {"check_grad_overflow": True} if stage < 3 else {}
    before = {name: getattr(optimizer, name) for name in settings}
    try:
        vars(optimizer).update(hidden | settings)
        engine.step()
    finally:
        for name in hidden:
            delattr(optimizer, name)
        vars(optimizer).update(before)
        vars(optimizer.loss_scaler).update(scale)


def _step_without_update(engine: Any, optimizer: Any) -> None:
    def step() -> None:  # what its own does when the norm is no number
        optimizer.overflow = True
        optimizer.clear_hp_grads()
        optimizer.clear_lp_grads()

    optimizer.step = step  # hides the method of the class
    try:
        engine.step()
    finally:
        del optimizer.step


def gradient_is_finite(module: nn.Module, *inputs: Tensor) -> bool:
    """Whether this rank's own gradient of a micro-batch is finite; every rank must ask at ZeRO-3.

    A hook sees each gradient where it enters a parameter, before DeepSpeed's reduction mixes the ranks.
    """
    finite: list[Tensor] = []
    parameters = [p for p in module.parameters() if p.requires_grad]
    loss = module(*inputs)
    for gradient in torch.autograd.grad(loss, parameters, allow_unused=True):
        if gradient is not None:
            finite.append(torch.isfinite(gradient).all())
    return bool(torch.stack(finite).all()) if finite else True

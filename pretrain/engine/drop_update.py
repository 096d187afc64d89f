"""Does two things that DeepSpeed has no call for: discards an update; finds ranks with a non-finite gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.engine.deepspeed_private import Layout, UnknownDeepSpeed

# What DeepSpeed's optimizer asks in a step before it updates: hidden, it is told of an overflow.
_ASKED = {
    Layout.FLAT: "check_overflow",
    Layout.FLAT_BF16: "step",
    Layout.SUBGROUPS: "_overflow_check_and_loss_scale_update",
}


def drop_update(engine: Any, layout: Layout) -> None:
    """Ends a step after its last backward pass without an update: weights, moments, counters and loss scale stay.

    ZeRO's own treatment of an overflow does it. Without ZeRO, an optimizer passes over parameters without a gradient.

    Raises:
        UnknownDeepSpeed: when the installed version would make the update, or did not ask whether to; weights are then
            as they were.
    """
    optimizer = engine.optimizer
    if layout is Layout.WHOLE:
        for parameter in engine.module.parameters():
            parameter.grad = None
        engine.step()
        return
    asked = False

    def overflow(*_: object, **__: object) -> bool:
        nonlocal asked
        asked = optimizer.overflow = True
        if layout is Layout.FLAT_BF16:  # as its own `step` does when the norm is not finite
            optimizer.clear_hp_grads()
            optimizer.clear_lp_grads()
        return True

    method = _ASKED[layout]
    if not callable(getattr(type(optimizer), method, None)):
        raise UnknownDeepSpeed([f"{type(optimizer).__name__} has no method `{method}`"])
    # Attributes of an object hide the methods of its class, here for one step.
    hidden: dict[str, Any] = {method: overflow} | ({"check_grad_overflow": True} if layout is Layout.FLAT else {})
    scale = vars(optimizer.loss_scaler) if layout is not Layout.FLAT_BF16 else {}
    kept = dict(scale)
    with _replaced(optimizer, **hidden), _replaced(optimizer.optimizer, step=_refuse):
        engine.step()
    scale.update(kept)
    if not asked or engine.was_step_applied():
        raise UnknownDeepSpeed([f"{type(optimizer).__name__} did not ask `{method}` whether to discard an update"])


def _refuse(*_: object, **__: object) -> None:
    raise UnknownDeepSpeed(["it makes an update that was refused"])


@contextmanager
def _replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Gives the object these attributes inside, and those it had before afterwards."""
    own = vars(owner)
    before = {name: own[name] for name in attributes if name in own}
    own.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            own.pop(name, None)
        own.update(before)


def gradient_is_finite(module: nn.Module, *inputs: Tensor, **columns: Tensor) -> bool:
    """Tells whether this rank's own gradient of a micro-batch is finite; at ZeRO-3 every rank must call it.

    A hook sees each gradient where it enters a parameter, before DeepSpeed's reduction mixes the ranks.
    """
    finite: list[Tensor] = []
    parameters = [p for p in module.parameters() if p.requires_grad]
    sums = module(*inputs, **columns)
    for gradient in torch.autograd.grad(sums.reshape(-1)[0], parameters, allow_unused=True):
        if gradient is not None:
            finite.append(torch.isfinite(gradient).all())
    return bool(torch.stack(finite).all()) if finite else True

"""Switches to plain kernels: slow, obvious code for what training computes with faster code of its own.

Inside `plain_kernels`, and without compilation, attention is torch's, the loss is what autograd makes of torch's
cross-entropy, and products that training makes in fp8 are made in the dtype of the weights.
`pretrain.numerics.kernel_check` compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from pretrain.model.float8 import float8_layers

_plain = False


def only_plain() -> bool:
    """Tells whether the code runs inside `plain_kernels`."""
    return _plain


@contextmanager
def plain_kernels(model: nn.Module) -> Iterator[None]:
    """Computes with plain kernels and without dropout inside; call the model's `forward`, which is not compiled."""
    global _plain
    before, _plain = _plain, True
    swapped = float8_layers(model)
    for module in swapped:  # torchao's class is a linear layer's: an attribute of the object hides its method
        vars(module)["forward"] = nn.Linear.forward.__get__(module)
    try:
        yield
    finally:
        _plain = before
        for module in swapped:
            del vars(module)["forward"]


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Drops nothing inside: masks drawn by compiled code and by torch are not the same."""
    changed = [module for module in model.modules() if getattr(module, "dropout", 0.0)]
    rates = [module.dropout for module in changed]
    config = getattr(model, "config", None)
    for module in changed:
        module.dropout = 0.0  # type: ignore[assignment]
    if config is not None and config.dropout:
        model.config = config.model_copy(update={"dropout": 0.0})
    try:
        yield
    finally:
        for module, rate in zip(changed, rates, strict=True):
            module.dropout = rate
        if config is not None:
            model.config = config

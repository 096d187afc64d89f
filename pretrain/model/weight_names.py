"""Names the weights of a module that holds a model, as checkpoints and optimizers know them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from pretrain.model.transformer import Transformer

MODEL = "model."  # the attribute that holds the model whose weights have no prefix
REWARD_HEAD = "reward_head.weight"  # (1, D)
# Beginnings of the names of weights beside the model's: the head of a reward model, a critic.
EXTRA_WEIGHTS = ("reward_head.", "value.")


def named_weights(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Each parameter once, in the order of the module: the model's under its own names, others under the module's."""
    return ((name.removeprefix(MODEL), parameter) for name, parameter in module.named_parameters())


def transformers(module: nn.Module) -> Iterator[tuple[str, Transformer]]:
    """The models inside a module, each with what the names of its weights begin with; "" for the module's `model`."""
    for name, part in module.named_modules():
        if isinstance(part, Transformer):
            yield f"{name}.".removeprefix(MODEL) if name else "", part

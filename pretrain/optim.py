"""What is decayed, and the update rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from configs.train_sections import Optimizer


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimizer: matrices and embeddings are decayed, norms and biases (1-D) are not.

    Each group holds `params`, in the order of the model, and their `names`, so that a checkpoint can be per parameter.
    A tied matrix stands once. Groups without parameters are left out.
    """
    groups: list[dict[str, Any]] = [
        {"params": [], "names": [], "weight_decay": weight_decay},
        {"params": [], "names": [], "weight_decay": 0.0},
    ]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = groups[0 if parameter.ndim >= 2 else 1]
            group["params"].append(parameter)
            group["names"].append(name)
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, in torch's fused form: one pass over the memory on CPU and on CUDA."""
    beta1, beta2 = settings.betas
    groups = parameter_groups(model, settings.weight_decay)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(beta1, beta2), eps=settings.eps, fused=True)

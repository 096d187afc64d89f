"""Recomputes activations in the backward pass instead of keeping them (activation checkpointing).

| `train.activation_checkpointing` | kept of a block                                        | computed again          |
|----------------------------------|--------------------------------------------------------|-------------------------|
| none                             | everything                                             | nothing                 |
| selective                        | its input; outputs of matrix products and of attention | norms, rotation, gates  |
| full                             | its input                                              | the whole forward pass  |

Chen et al., arXiv:1604.06174 (full); Korthikanti et al., arXiv:2205.05198, section 5 (selective), here with torch's own
means. Random numbers are restored, so dropout masks are the same the second time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Outputs = TypeVar("Outputs")
_ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)


def run_block(mode: str, block: Callable[..., Outputs], *inputs: Any) -> Outputs:
    """`block(*inputs)`, keeping for backward what `mode` says: `none`, `selective` or `full`."""
    if mode == "none":
        return block(*inputs)
    settings: dict[str, Any] = {"context_fn": _selective_contexts} if mode == "selective" else {}
    out: Outputs = checkpoint(block, *inputs, use_reentrant=False, **settings)
    return out


def _policy(_: object, operator: Any, *inputs: Any, **__: Any) -> CheckpointPolicy:
    if operator in _kept():
        return CheckpointPolicy.MUST_SAVE
    if operator in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
        *_, left, right = inputs
        # A product that narrows ends the MLP: nothing in the block's backward needs its output.
        if left.shape[-1] <= right.shape[-1]:
            return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


@cache
def _kept() -> frozenset[Any]:
    found = {getattr(torch.ops.aten, name).default for name in _ATTENTION if hasattr(torch.ops.aten, name)}
    return frozenset(found | {torch.ops.higher_order.flex_attention})


_selective_contexts = partial(create_selective_checkpoint_contexts, _policy)

"""Computes the projection to the vocabulary and the cross-entropy in one, a few positions at a time.

The logits of a whole batch are its largest tensor: N x V elements, kept for the backward pass and in fp32 beside. Here
the gradient of a chunk is computed in the forward pass, right after its loss, and the chunk's logits are let go: no
multiplication is done twice (the way of Liger Kernel, arXiv:2410.10989).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pretrain.model.plain_kernels import only_plain


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, chunk: int, softcap: float | None = None
) -> Tensor:
    """Sum over positions of weight x -log softmax(hidden @ weight.T)[target]: nats, a scalar in fp32.

    Args: hidden (N, D); weight (V, D); targets (N,) int64; weights (N,) float32, which get no gradient; chunk:
    positions at a time. The products are made in the dtype of `hidden` and `weight`, or autocast's; the
    softmax in fp32.
    """
    if hidden.shape[0] <= chunk:
        return _sum_of_nats(_logits(hidden, weight, softcap), targets, weights)
    if not torch.is_grad_enabled():
        chunks = [slice(start, start + chunk) for start in range(0, hidden.shape[0], chunk)]
        parts = [_sum_of_nats(_logits(hidden[rows], weight, softcap), targets[rows], weights[rows]) for rows in chunks]
        return torch.stack(parts).sum()
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)  # once, not in every chunk
    if only_plain():
        return _by_autograd(hidden, weight, targets, weights, chunk, softcap)
    nats: Tensor = _Chunked.apply(hidden, weight, targets, weights, chunk, softcap)  # type: ignore[no-untyped-call]
    return nats


def _logits(hidden: Tensor, weight: Tensor, softcap: float | None) -> Tensor:
    logits = F.linear(hidden, weight)
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _sum_of_nats(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return (F.cross_entropy(logits.float(), targets, reduction="none") * weights).sum()


def _by_autograd(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, chunk: int, softcap: float | None
) -> Tensor:
    """`linear_cross_entropy` whose gradient is autograd's, from logits that are computed a second time for it."""

    def part(hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return _sum_of_nats(_logits(hidden, weight, softcap), targets, weights)

    parts = zip(*(torch.split(each, chunk) for each in (hidden, targets, weights)), strict=True)
    return torch.stack([checkpoint(part, *each, use_reentrant=False) for each in parts]).sum()


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor,
        chunk: int,
        softcap: float | None,
    ) -> Tensor:
        nats = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        # Chunks add up in fp32: sums in bf16 would lose the small ones.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            capped = _logits(hidden[rows], weight, softcap)
            log_p = F.log_softmax(capped.float(), dim=-1)
            index = targets[rows, None]
            nats -= (log_p.gather(1, index).squeeze(1) * weights[rows]).sum()
            grad = log_p.exp_()
            grad.scatter_add_(1, index, torch.full_like(index, -1, dtype=grad.dtype))
            grad *= weights[rows, None]
            if softcap is not None:
                grad *= 1 - (capped.float() / softcap).square()
            grad = grad.to(hidden.dtype)
            grad_hidden[rows] = grad @ weight
            grad_weight += grad.T @ hidden[rows]
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return nats

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = upstream[0]
        return grad_hidden * scale.to(grad_hidden.dtype), grad_weight * scale.to(grad_weight.dtype), *[None] * 4

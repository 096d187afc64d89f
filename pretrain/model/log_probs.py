"""Computes the projection to the vocabulary and the log-probability of each target, a few positions at a time.

Objectives that weigh tokens by more than a constant (preferences, policy gradients) need the log-probabilities
themselves, and not their sum. Logits of a chunk are let go after it; the backward pass computes them once more.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pretrain.model.plain_kernels import only_plain


def linear_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk: int,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """log softmax(logits / temperature)[target] of each position, and the entropy of that distribution, in nats.

    Args:
        hidden: (N, D).
        weight: (V, D).
        targets: (N,) int64.
        chunk: positions at a time.
        softcap: of the logits (`Model.logit_softcap`), before the temperature.
        temperature: divides the logits.

    Returns:
        (N,) and (N,), fp32. The products are made in the dtype of `hidden` and `weight`, or autocast's; the softmax in
        fp32. The entropy has no gradient.
    """
    if hidden.shape[0] <= chunk:
        return _of_logits(_logits(hidden, weight, softcap, temperature), targets)
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)  # once, not in every chunk
    if only_plain():
        return _by_autograd(hidden, weight, targets, chunk, softcap, temperature)
    found: tuple[Tensor, Tensor] = _Chunked.apply(hidden, weight, targets, chunk, softcap, temperature)  # type: ignore[no-untyped-call]
    return found


def _logits(hidden: Tensor, weight: Tensor, softcap: float | None, temperature: float) -> Tensor:
    logits = F.linear(hidden, weight)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return logits.float() / temperature if temperature != 1 else logits.float()


def _of_logits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    log_p = F.log_softmax(logits, dim=-1)
    return log_p.gather(1, targets[:, None]).squeeze(1), _entropy(log_p)


@torch.no_grad()
def _entropy(log_p: Tensor) -> Tensor:
    # A token of probability 0 adds 0, and not the NaN of 0 x infinity.
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(dim=-1)


def _by_autograd(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, softcap: float | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """`linear_log_probs` whose gradient is autograd's, from logits that are computed a second time for it."""

    def part(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return _of_logits(_logits(hidden, weight, softcap, temperature), targets)

    parts = zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True)
    found = [checkpoint(part, *each, use_reentrant=False) for each in parts]
    return torch.cat([log_p for log_p, _ in found]), torch.cat([entropy for _, entropy in found])


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        softcap: float | None,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        parts = [
            _of_logits(
                _logits(hidden[start : start + chunk], weight, softcap, temperature), targets[start : start + chunk]
            )
            for start in range(0, hidden.shape[0], chunk)
        ]
        log_probs, entropy = (torch.cat([part[index] for part in parts]) for index in range(2))
        ctx.save_for_backward(hidden, weight, targets)
        ctx.chunk, ctx.softcap, ctx.temperature = chunk, softcap, temperature
        ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        # Chunks add up in fp32: sums in bf16 would lose the small ones.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, hidden.shape[0], ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            logits = _logits(hidden[rows], weight, ctx.softcap, ctx.temperature)
            above = upstream[0][rows, None]
            grad = F.softmax(logits, dim=-1).mul_(-above)
            grad.scatter_add_(1, targets[rows, None], above.to(grad.dtype))
            grad /= ctx.temperature
            if ctx.softcap is not None:
                grad *= 1 - (logits * (ctx.temperature / ctx.softcap)).square()
            grad = grad.to(hidden.dtype)
            grad_hidden[rows] = grad @ weight
            grad_weight += grad.T @ hidden[rows]
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None, None

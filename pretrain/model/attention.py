"""Computes self-attention with rotary positions, causal or both ways.

Letters of shapes as in `pretrain.model.transformer`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from configs.schema.model import Model
from pretrain.model.kv_cache import Cache
from pretrain.model.masking import Mask, attend
from pretrain.model.rope import frequencies
from pretrain.model.sequence_group import SequenceGroup
from pretrain.sizes.limits import LONGEST_PRODUCT_ATTENTION

Rotation = tuple[Tensor, Tensor]  # cos and signed sin, each (T, 1, E) or (B, T, 1, E)


def rotation_table(config: Model, device: torch.device | None = None) -> Rotation:
    """cos and sin of position x frequency for all positions, fp32 (context_length, E).

    Half-split layout, as in Hugging Face: component i turns with component i + E/2, so both halves hold the same
    frequencies. The first half of sin is negated: `rotate` needs no sign of its own.
    """
    if device is not None and device.type == "meta":  # to compute nothing there, torch loads its whole compiler (1.4 s)
        cos, sin = (
            torch.empty(config.context_length, config.head_width, dtype=torch.float32, device=device) for _ in range(2)
        )
        return cos, sin
    frequency, temperature = frequencies(config, device)
    angle = torch.outer(torch.arange(config.context_length, dtype=torch.float32, device=device), frequency)
    cos, sin = angle.cos() * temperature, angle.sin() * temperature
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotary position embedding of x (B, T, heads, E)."""
    cos, sin = rotation
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def product_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = True) -> Tensor:
    """Attention of q (B, H, T, E) over k and v (B, K, T, E) as matrix products: (B, H, T, E).

    For compiled training on a CPU at short lengths. There the products run at full speed and the compiler fuses what is
    between them, while torch's own kernel took three times as long (docs/lab-notes.md). Queries go in a few blocks.
    Where attention is causal, each sees the keys up to its end alone, so that little of the masked half is computed.

    `mask`: (B, 1, T, T), 0 and -inf as from `pretrain.model.masking.document_mask`; causal where `causal` is.
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    out: Tensor = _Products.apply(q, k, v, mask, causal)  # type: ignore[no-untyped-call]
    return out


class _Products(torch.autograd.Function):
    """`product_attention` with as many heads everywhere, and its gradient.

    Written out, because what autograd makes of the forward pass writes the gradients of keys and values transposed and
    padded with zeros, and keeps the weights in fp32 as well, which cost 6% of a step (docs/lab-notes.md). The sum that
    the softmax's gradient needs is that of out x its gradient (FlashAttention, arXiv:2205.14135, appendix B).

    Heads and sequences are one dimension of contiguous (B H, T, E), and what is transposed is a view of it: `@` on four
    dimensions would make the compiler write transposed copies of keys and values for every block, which gcc 12 has been
    seen to compile wrongly in bf16 (docs/lab-notes.md, "Two transposed copies").
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        batch, heads, length, width = q.shape
        block = _attention_block(length)
        ctx.causal = causal
        q, k, v = (x.reshape(batch * heads, length, width) for x in (q, k, v))
        position = torch.arange(length, device=q.device)
        weights, parts = [], []
        for start in range(0, length, block):
            last = start + block
            end = last if causal else length
            scores = torch.bmm(q[:, start:last], k[:, :end].transpose(1, 2)).float() / math.sqrt(width)
            if mask is not None:
                scores = (scores.view(batch, heads, block, end) + mask[:, :, start:last, :end]).flatten(0, 1)
            elif causal:
                hidden = position[:end] > position[start:last, None]  # (block, end)
                scores = scores.masked_fill(hidden, -math.inf)
            weights.append(scores.softmax(dim=-1).to(q.dtype))
            parts.append(torch.bmm(weights[-1], v[:, :end]))
        out = torch.cat(parts, dim=1)
        ctx.save_for_backward(q, k, v, out, *weights)
        return out.view(batch, heads, length, width)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, *weights = ctx.saved_tensors
        shape, block = gradient.shape, _attention_block(q.shape[1])
        gradient = gradient.reshape(q.shape)
        sums = (gradient.float() * out.float()).sum(dim=-1, keepdim=True)  # (B H, T, 1)
        of_q: list[Tensor] = []
        of_k: list[Tensor] = []
        of_v: list[Tensor] = []
        for number, weight in enumerate(weights):
            rows, end = slice(number * block, (number + 1) * block), weight.shape[2]
            of_weight = torch.bmm(gradient[:, rows], v[:, :end].transpose(1, 2)).float()
            of_scores = weight.float() * (of_weight - sums[:, rows]) / math.sqrt(q.shape[2])
            of_scores = of_scores.to(q.dtype)
            of_q.append(torch.bmm(of_scores, k[:, :end]))
            of_k.append(torch.bmm(of_scores.transpose(1, 2), q[:, rows]))
            of_v.append(torch.bmm(weight.transpose(1, 2), gradient[:, rows]))
        whole = torch.cat(of_q, dim=1), _add_up(of_k, block), _add_up(of_v, block)
        return whole[0].view(shape), whole[1].view(shape), whole[2].view(shape), None, None


def _add_up(parts: list[Tensor], block: int) -> Tensor:
    """Sum of (B H, block, E), (B H, 2 block, E), …, each counted from the first position; or of parts of one length."""
    if parts[0].shape == parts[-1].shape:
        return sum(parts[1:], start=parts[0])
    added = []
    for number in range(len(parts)):
        rows = slice(number * block, (number + 1) * block)
        total = parts[number][:, rows]
        for later in parts[number + 1 :]:
            total = total + later[:, rows]
        added.append(total)
    return torch.cat(added, dim=1)


def _attention_block(length: int) -> int:
    """Query block size: at most four blocks, each of 128 or more; 0 means use the library kernel."""
    block = max(128, length // 4) if length >= 128 else length
    # Beyond, the attention weights kept for the backward pass take too much memory.
    return block if length <= LONGEST_PRODUCT_ATTENTION and length % block == 0 else 0


def attends_by_products(device: torch.device, dropout: float, length: int) -> bool:
    """Tells whether compiled training takes `product_attention`, where no FlexAttention is asked for."""
    return device.type == "cpu" and not dropout and _attention_block(length) > 0


class HeadNorm(nn.RMSNorm):
    """RMSNorm of queries or keys (QK-norm), in the precision of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, E) -> the same shape and dtype."""
        if x.dtype == self.weight.dtype:
            return super().forward(x)
        # Autocast leaves the weight in fp32 and the heads in bf16: torch would warn of it, and go the slow way.
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class Attention(nn.Module):
    """Self-attention with grouped queries, causal or not; one matrix for queries, keys and values, in this order."""

    def __init__(self, config: Model, layer: int) -> None:
        super().__init__()
        self.layer, self.dropout, self.width, self.causal = layer, config.dropout, config.head_width, config.causal
        self.heads, self.kv_heads = config.num_heads, config.kv_heads
        self.query_scale = config.query_scale
        self.qkv = nn.Linear(config.hidden_size, (self.heads + 2 * self.kv_heads) * self.width, bias=config.bias)
        self.out = nn.Linear(self.heads * self.width, config.hidden_size, bias=config.bias)
        self.q_norm = HeadNorm(self.width, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = HeadNorm(self.width, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.sequence: SequenceGroup | None = None
        self.value_residual = config.value_residual
        self.value_mix = ValueMix() if config.value_residual and layer else None

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None,
        mask: Mask | None,
        cache: Cache | None,
        first_values: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) -> (B, T, D), and the values (B, T, K, E) that later layers mix in, if any do."""
        qkv = self.qkv(x).unflatten(-1, (-1, self.width))  # (B, T, H+2K, E)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.query_scale != 1:
            q = q * self.query_scale
        if self.value_mix is not None and first_values is not None:
            v = self.value_mix(v, first_values)
        elif self.value_residual:
            first_values = v
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, E), (B, K, T, E) twice
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, K, S, E)
        if self.sequence is not None:
            q, k, v = (self.sequence.tokens_to_heads(x) for x in (q, k, v))
        y = self._attend(q, k, v, mask)  # (B, H, T, E)
        if self.sequence is not None:
            y = self.sequence.heads_to_tokens(y)
        return self.out(y.transpose(1, 2).flatten(2)), first_values

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None) -> Tensor:
        compiled_training = self.training and torch.compiler.is_compiling()
        by_products = compiled_training and attends_by_products(q.device, self.dropout, q.shape[2])
        if by_products and not isinstance(mask, BlockMask):  # in training a tensor is a mask of documents
            return product_attention(q, k, v, mask, self.causal)
        return attend(q, k, v, mask, self.dropout if self.training else 0.0, self.causal)


class ValueMix(nn.Module):
    """A layer's values and the first layer's, mixed by one learned share that starts at a half.

    A module of its own, because ZeRO-3 gathers a weight only inside the forward of the module that owns it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1))

    def forward(self, values: Tensor, first: Tensor) -> Tensor:
        """Both (B, T, K, E)."""
        return values.lerp(first, self.weight.to(values.dtype))

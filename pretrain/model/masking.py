"""Restricts attention to documents: a token sees its own document alone, and of it only what a causal model may.

A batch says where documents begin by `positions` (B, T) alone: the place of each token in its document, from 0. What
follows from it, for query q and key k of a row: q attends to k where q - positions[q] <= k <= q. A model that reads
both ways (`model.causal: false`) attends where q - positions[q] = k - positions[k]: their documents begin at one place.
So a window that holds several documents computes what they would compute one by one.

On a GPU the mask goes to FlexAttention (Dong et al., arXiv:2412.05496), which leaves out whole blocks of it; on a CPU,
and with dropout, to torch's attention as values that are added to the scores. Either is made once a batch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from configs.schema.model import Model

Mask = Tensor | BlockMask

_FLEX_HEAD_WIDTH = 16  # the least that its kernels take


def prefers_flex(config: Model, device: torch.device) -> bool:
    """Tells whether FlexAttention computes masked attention here: it has no dropout, and no backward pass on CPUs."""
    return device.type == "cuda" and config.dropout == 0 and config.head_width >= _FLEX_HEAD_WIDTH


def document_mask(positions: Tensor, dtype: torch.dtype, flex: bool, causal: bool = True) -> Mask:
    """Makes the attention mask of documents.

    Args:
        positions: (B, T) int64, place of each token in its document.
        dtype: of the queries.
        flex: for FlexAttention; otherwise (B, 1, T, T) with 0 where one may and -inf where not. Numbers and not bool,
            which torch's attention would turn into values to add anew in every layer.
        causal: a token does not see those after it.
    """
    batch, length = positions.shape
    columns = torch.arange(length, device=positions.device)
    begins = columns - positions  # (B, T): where the document of each token begins in the row
    if flex:

        def sees(b: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (key >= begins[b, query])

        def sees_both_ways(b: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return begins[b, query] == begins[b, key]

        rule = sees if causal else sees_both_ways
        return create_block_mask(rule, batch, None, length, length, device=positions.device)
    if causal:
        allowed = (columns <= columns[:, None]) & (columns >= begins[:, :, None])  # (B, T, T)
    else:
        allowed = begins[:, None, :] == begins[:, :, None]
    return torch.zeros((), dtype=dtype, device=positions.device).where(allowed, float("-inf")).unsqueeze(1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask | None, dropout: float, causal: bool = True) -> Tensor:
    """softmax(q kᵀ / √E) v: (B, H, T, E) of q (B, H, T, E) and k, v (B, K, S, E).

    Without a mask it is causal where `causal` is, and sees everything otherwise.

    `mask`: from `document_mask`, or a tensor as torch's `scaled_dot_product_attention` takes it.
    """
    grouped = q.shape[1] != k.shape[1]
    if isinstance(mask, BlockMask):
        assert not dropout, "FlexAttention has no dropout"
        kernel = flex_attention if q.device.type == "cpu" or torch.compiler.is_compiling() else _compiled_flex()
        masked: Tensor = kernel(q, k, v, block_mask=mask, enable_gqa=grouped)
        return masked
    triangle = causal and mask is None and q.shape[2] == k.shape[2]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=triangle, enable_gqa=grouped
    )


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    """The kernel for a model that is not compiled itself: without compilation all scores would be held in memory."""
    return torch.compile(flex_attention, dynamic=False)

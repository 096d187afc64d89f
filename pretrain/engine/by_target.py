"""Computes values of every target of a batch, a few rows at a time, without gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.functional import pad

from pretrain.batches.source import Batch


def values_by_target(batch: Batch, parts: Iterable[Batch], take: Callable[..., Tensor]) -> Tensor:
    """(K, B, T) fp32 of a batch on the device, put together from `parts` of its rows; 0 behind a row's end.

    `take(tokens, targets, weights[, positions], **columns)` gives (K, b, t) of a part.
    """
    found = []
    for part in parts:
        values = take(*part.inputs, **part.columns).float()
        found.append(pad(values, (0, batch.tokens.shape[1] - values.shape[-1])))
    whole = torch.cat(found, dim=1)
    if batch.lengths is None:
        return whole
    lengths = torch.tensor(batch.lengths, device=whole.device)
    return whole * (torch.arange(whole.shape[-1], device=whole.device) < lengths[:, None])

"""Keeps keys and values of the text so far, for generation and evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from configs.schema.model import Model


class KVCache:
    """Keys and values of all layers, so that a new token costs one column of attention.

    Rows of different lengths are padded on the left: `padding[b]` columns of row b are not text. They are never
    attended to, and the row's positions count from its first real token: it gives the same logits as it would alone.
    """

    def __init__(self, config: Model, weight: Tensor, batch: int, capacity: int, padding: Tensor | None = None) -> None:
        """Makes room for `capacity` columns, of the dtype and on the device of `weight`.

        `padding` (B,) int64 on that device, or None for no padding.
        """
        shape = (config.num_layers, batch, config.kv_heads, capacity, config.head_width)
        self.keys = torch.empty(shape, dtype=weight.dtype, device=weight.device)  # (L, B, K, capacity, E)
        self.values = torch.empty_like(self.keys)
        self.padding = padding
        self.length = 0  # columns in use

    @property
    def capacity(self) -> int:
        """The number of columns that the cache has room for."""
        return self.keys.shape[3]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (B, K, T, E) behind the columns in use; returns all columns of this layer, (B, K, S, E)."""
        end = self.length + keys.shape[2]
        assert end <= self.capacity, f"cache of {self.capacity} columns cannot hold {end}"
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def positions(self, columns: Tensor) -> Tensor:
        """Positions in the text of these columns: (T,) without padding, else (B, T); padding columns get 0."""
        return columns if self.padding is None else (columns - self.padding[:, None]).clamp(min=0)

    def mask(self, columns: Tensor) -> Tensor | None:
        """The attention mask: bool (T, S) or (B, 1, T, S); None where plain causal attention is the same."""
        new = columns.shape[0]
        if self.padding is None and (self.length == 0 or new == 1):
            return None
        query, key = columns[:, None], torch.arange(self.length + new, device=columns.device)
        causal = key <= query  # (T, S)
        if self.padding is None:
            return causal
        # A padding column attends to itself: a row of the softmax with nothing in it would be NaN.
        return ((causal & (key >= self.padding[:, None, None])) | (key == query)).unsqueeze(1)

    def select(self, rows: list[int]) -> None:
        """Keeps these rows of the batch, in this order."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        if self.padding is not None:
            self.padding = self.padding[rows]

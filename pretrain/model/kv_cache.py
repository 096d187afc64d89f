"""Keeps keys and values of the text so far, for generation and evaluation."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from configs.schema.model import Model


class Cache(Protocol):
    """What a model needs of the tokens before those that it reads.

    Attributes:
        length: tokens before the new ones, in the row that has the fewest.
    """

    length: int

    def positions(self, columns: Tensor) -> Tensor:
        """The place in its text of each new token, int64 (T,) or (B, T); `columns`: `length`, `length` + 1, …."""
        ...

    def mask(self, columns: Tensor) -> Tensor | None:
        """The attention mask, bool or added to the scores; None where plain causal attention is the same."""
        ...

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (B, K, T, E) of the new tokens; returns those of all tokens, (B, K, S, E)."""
        ...


class KVCache:
    """Keys and values of all layers, so that a new token costs one column of attention.

    All rows have one length. `pretrain.generation.row_cache` keeps rows of different lengths.
    """

    def __init__(self, config: Model, weight: Tensor, batch: int, capacity: int) -> None:
        """Makes room for `capacity` columns, of the dtype and on the device of `weight`."""
        shape = (config.num_layers, batch, config.kv_heads, capacity, config.head_width)
        self.keys = torch.empty(shape, dtype=weight.dtype, device=weight.device)  # (L, B, K, capacity, E)
        self.values = torch.empty_like(self.keys)
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
        """(T,): those of the columns."""
        return columns

    def mask(self, columns: Tensor) -> Tensor | None:
        """The attention mask, bool (T, S); None where plain causal attention is the same."""
        new = columns.shape[0]
        if self.length == 0 or new == 1:
            return None
        return torch.arange(self.length + new, device=columns.device) <= columns[:, None]

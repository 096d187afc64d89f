"""Keeps keys and values of texts that others continue, so that a beginning that many texts share is read once.

Letters of shapes as in `pretrain.model.transformer`; P tokens before the new ones, N places of the store.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pretrain.model.transformer import Transformer

Places = npt.NDArray[np.int64]  # of tokens in the store


class TokenStore:
    """Keys and values of tokens, each in a place of its own. It is used as a stack: `release` forgets the newest."""

    def __init__(self, model: Transformer) -> None:
        self._config, self._weight = model.config, model.embed.weight
        self.used = 0
        self.keys, self.values = self._places(0), self._places(0)  # (L, N, K, E)

    @property
    def bytes_per_token(self) -> int:
        """Memory of one place."""
        config = self._config
        return 2 * config.num_layers * config.kv_heads * config.head_width * self._weight.element_size()

    def reserve(self, places: int) -> None:
        """Makes room for so many places above those in use."""
        if self.used + places > self.keys.shape[1]:
            self._grow(max(self.used + places, 2 * self.keys.shape[1]))

    def release(self, used: int) -> None:
        """Forgets all but the first `used` places."""
        self.used = min(self.used, used)

    def _grow(self, size: int) -> None:
        keys, values = self._places(size), self._places(size)
        keys[:, : self.used], values[:, : self.used] = self.keys[:, : self.used], self.values[:, : self.used]
        self.keys, self.values = keys, values

    def _places(self, size: int) -> Tensor:
        """Memory without values: no place is read before it is written."""
        config, weight = self._config, self._weight
        shape = (config.num_layers, size, config.kv_heads, config.head_width)
        return torch.empty(shape, dtype=weight.dtype, device=weight.device)


class BranchCache:
    """The cache of one forward pass: rows of new tokens, each after a text of the store.

    New tokens are padded on the right. After the pass, `places` says where those of each row are.
    """

    def __init__(self, store: TokenStore, before: Sequence[Places], new: int) -> None:
        """Makes a place for `new` tokens of each row.

        Args:
            store: keeps the tokens.
            before: the places of each row's text, B rows of any length, in order.
            new: tokens of a row, T.
        """
        self._store, self._batch, self._new = store, len(before), new
        store.reserve(len(before) * new)
        self._start = store.used
        store.used += len(before) * new
        self._lengths = np.array([len(places) for places in before], dtype=np.int64)
        self.length = int(self._lengths.min())
        self._longest = int(self._lengths.max())
        self._device = store.keys.device
        self.places = self._start + np.arange(len(before) * new).reshape(len(before), new)  # (B, T)
        self._all: Tensor | None = None
        if self._longest:
            # Where a text is shorter than the longest one, any written place will do: nobody attends to it.
            padded = np.zeros((len(before), self._longest), dtype=np.int64)
            for row, places in enumerate(before):
                padded[row, : len(places)] = places
            self._all = torch.from_numpy(np.concatenate([padded, self.places], axis=1).ravel()).to(self._device)

    def positions(self, columns: Tensor) -> Tensor:
        """(B, T): the place of each new token in its text; padding stands at the last place that there is."""
        lengths = torch.from_numpy(self._lengths).to(self._device).unsqueeze(1)
        offsets = torch.arange(self._new, device=self._device)
        return (lengths + offsets).clamp_(max=self._store._config.context_length - 1)

    def mask(self, columns: Tensor) -> Tensor | None:
        """What is added to attention scores, (B, 1, T, P + T), or (1, 1, T, P + T) where all texts have one length."""
        if self._all is None:
            return None
        even = self.length == self._longest
        lengths = torch.from_numpy(self._lengths[:1] if even else self._lengths).to(self._device)
        keys = torch.arange(self._longest + self._new, device=self._device)
        queries = torch.arange(self._new, device=self._device)
        behind = keys >= self._longest
        seen = (keys < lengths[:, None, None]) | (behind & (keys - self._longest <= queries[:, None]))
        zero = torch.zeros((), dtype=self._store.keys.dtype, device=self._device)
        return zero.where(seen, -math.inf).unsqueeze(1)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (B, K, T, E); returns the keys and values of each row's text and new tokens, (B, K, P + T, E)."""
        return self._extended(self._store.keys[layer], keys), self._extended(self._store.values[layer], values)

    def _extended(self, store: Tensor, new: Tensor) -> Tensor:
        store[self._start : self._start + self._batch * self._new] = new.transpose(1, 2).flatten(0, 1)
        if self._all is None:
            return new
        whole = store.index_select(0, self._all)  # (B (P + T), K, E)
        return whole.view(self._batch, -1, *whole.shape[1:]).transpose(1, 2)

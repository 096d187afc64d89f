"""Keeps keys and values of texts that decode side by side. Letters of shapes as in `pretrain.generation.decode`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.generation.decode import is_lean
from pretrain.model.kv_cache import KVCache
from pretrain.model.transformer import Transformer

_STRIDE = 64  # columns are added by so many
_SHARED = 32  # tokens that prompts begin with alike, from which on it is worth to read them once


class RowCache:
    """The cache of a `Player`: every text begins in column 0 of its row.

    Args:
        model: whose keys and values it keeps.
        fixed_rows: so many rows of a whole context, for good, in memory that never moves; None: it grows as it must.
    """

    def __init__(self, model: Transformer, fixed_rows: int | None = None) -> None:
        self._model, self._fixed_rows = model, fixed_rows
        self._keys: Tensor | None = None  # (L, R, K, C, E)
        self._values: Tensor | None = None
        self._beginning: tuple[list[int], KVCache] | None = None  # the newest that prompts had in common, read

    def view(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first rows and columns, (L, rows, K, columns, E)."""
        assert self._keys is not None and self._values is not None
        return self._keys[:, :rows, :, :columns], self._values[:, :rows, :, :columns]

    def reserve(self, rows: int, columns: int) -> None:
        """Makes room for so many rows and columns; what is there stays."""
        config = self._model.config
        if self._fixed_rows is not None:
            rows, columns = self._fixed_rows, config.context_length
        old = None if self._keys is None else self._keys.shape
        if old is not None and old[1] >= rows and old[3] >= columns:
            return
        columns = min(-(-columns // _STRIDE) * _STRIDE, config.context_length)
        if old is not None:
            # Twice as many rows: a server's rows come one at a time.
            rows, columns = max(rows, old[1] if old[1] >= rows else 2 * old[1]), max(columns, old[3])
        shape = (config.num_layers, rows, config.kv_heads, columns, config.head_width)
        dtype, device = self._dtype(), self._model.embed.weight.device
        # Zeros: a column that was never written is masked, but 0 x NaN would still be NaN.
        keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        if self._fixed_rows is None and is_lean(self._model.embed.weight):
            # One query times all keys is up to 1.6 times as fast where the columns of a component lie side by side.
            keys = torch.zeros((*shape[:3], shape[4], columns)).transpose(-1, -2)
        if old is not None:
            assert self._keys is not None and self._values is not None
            keys[:, : old[1], :, : old[3]] = self._keys
            values[:, : old[1], :, : old[3]] = self._values
        self._keys, self._values = keys, values
        if self._fixed_rows is not None and device.type == "cuda":
            for cache in (keys, values):  # a CUDA graph may then write it in place
                torch._dynamo.mark_static_address(cache)

    def _dtype(self) -> torch.dtype:
        """That of the keys: under autocast, the dtype of matrix products."""
        weight = self._model.embed.weight
        device = weight.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype

    def read(self, texts: Sequence[list[int]], places: Sequence[Sequence[int]]) -> Tensor:
        """Reads texts into the cache, each into all rows of its `places`, which follow one another.

        Returns:
            (sum of places, V) logits of the token after each text, in the order of the places.
        """
        assert self._keys is not None and self._values is not None
        longest, device = max(map(len, texts)), self._keys.device
        fresh = self._model.new_cache(len(texts), longest)
        begun = self._begin(texts, fresh)
        # Padded on the right: causal attention keeps the padding from the text, and needs no mask of its own for it.
        tokens = torch.tensor([[*text[begun:], *[0] * (longest - len(text))] for text in texts], device=device)
        hidden = self._model.backbone(tokens, fresh)  # (B, T, D)
        ends = torch.tensor([len(text) - 1 - begun for text in texts], device=device)
        logits = self._model.head(hidden[torch.arange(len(texts), device=device), ends])  # (B, V)
        for own, new in ((self._keys, fresh.keys), (self._values, fresh.values)):
            for text, rows in enumerate(places):
                own[:, rows[0] : rows[-1] + 1, :, :longest] = new[:, text : text + 1]  # all samples of it
        if len(texts) == sum(map(len, places)):
            return logits
        return logits[torch.tensor([text for text, rows in enumerate(places) for _ in rows], device=device)]

    def _begin(self, texts: Sequence[list[int]], fresh: KVCache) -> int:
        """Fills a cache with what all texts begin with, such as few-shot examples; returns the number of tokens.

        It is read once, and kept for texts that begin so later.
        """
        common = _beginning([text[: len(text) - 1] for text in texts])  # a token must be left to be read
        known = 0 if self._beginning is None else len(_beginning([common, self._beginning[0]]))
        if len(texts) > 1 and len(common) >= _SHARED and known < len(common) // 2:
            read = self._model.new_cache(1, len(common))
            self._model.backbone(torch.tensor([common], device=fresh.keys.device), read)
            self._beginning, known = (common, read), len(common)
        if self._beginning is None or known < _SHARED:
            return 0
        kept = self._beginning[1]
        fresh.keys[:, :, :, :known] = kept.keys[:, :, :, :known]
        fresh.values[:, :, :, :known] = kept.values[:, :, :, :known]
        fresh.length = known
        return known

    def move(self, source: int, target: int, columns: int) -> None:
        """Copies the first columns of one row over those of another."""
        assert self._keys is not None and self._values is not None
        self._keys[:, target, :, :columns] = self._keys[:, source, :, :columns]
        self._values[:, target, :, :columns] = self._values[:, source, :, :columns]


def _beginning(texts: Sequence[list[int]]) -> list[int]:
    """What all texts begin with."""
    least, most = min(texts), max(texts)  # in lexicographic order, all others lie between
    same = 0
    while same < min(len(least), len(most)) and least[same] == most[same]:
        same += 1
    return least[:same]

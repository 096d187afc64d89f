"""Steps rows of text through a model, token by token: what encoder and decoder both do, call for call.

All rows have one length, so the shapes of a step depend on its number alone. When the context is full, the model reads
the last half of it again, as `pretrain.generation.player` does: every token but the first ones is predicted from at
least half a context.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.generation.decode import Decoder
from pretrain.generation.row_cache import RowCache
from pretrain.model.transformer import Transformer

_READ_TOKENS = 8192  # in one forward pass: activations stay small

Logits = NDArray[np.float32]  # (R, V)


class Rows:
    """Rows of text that grow by one token at a time, all together.

    Args:
        model: in evaluation mode.
        count: of the rows, R.
        steps: tokens that each row gets at most, the begin token included; memory is reserved for them.
    """

    def __init__(self, model: Transformer, count: int, steps: int) -> None:
        self._context = model.config.context_length
        self._decoder, self._cache = Decoder(model), RowCache(model)
        self._cache.reserve(count, min(self._context, steps))
        self._device = model.embed.weight.device
        self._text = np.zeros((count, self._context), dtype=np.int64)  # what the model has read
        self._length = 0

    def feed(self, tokens: NDArray[np.integer]) -> Logits:
        """Appends tokens (R,), one to each row; returns the logits (R, V) of the tokens that follow."""
        if self._length == self._context:
            return self._read_again(tokens)
        column = self._length
        self._text[:, column] = tokens
        self._length += 1
        keys, values = self._cache.view(len(tokens), self._length)
        lengths = torch.full((len(tokens),), column, device=self._device)
        new = torch.from_numpy(self._text[:, column].copy()).to(self._device)
        return _on_host(self._decoder(new, lengths, keys, values, column))

    def _read_again(self, tokens: NDArray[np.integer]) -> Logits:
        kept = max(1, self._context // 2)  # the new token included
        text = np.concatenate([self._text, tokens[:, None]], axis=1)[:, -kept:]
        self._text[:, :kept], self._length = text, kept
        at_once = max(1, _READ_TOKENS // kept)
        parts = [
            self._cache.read(text[start : start + at_once].tolist(), [[row] for row in rows])
            for start in range(0, len(text), at_once)
            if (rows := range(start, min(start + at_once, len(text))))
        ]
        return _on_host(torch.cat(parts))


def _on_host(logits: Tensor) -> Logits:
    found: Logits = logits.float().cpu().numpy()
    return found

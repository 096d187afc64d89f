"""Measures loss, perplexity and bits per byte on the validation split.

The first `train.validation.max_tokens` targets, an equal fraction of every source, in windows of the context length
laid side by side; the last window of a source may be shorter. What is reported are ratios of sums over all of them, so
the batch size and the number of ranks change nothing but rounding. A model trained with document masking is scored with
it: documents in one window do not see each other.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest, TokenStream
from pretrain.batches.source import Batch, document_positions
from pretrain.engine.engine import Engine


class Validator:
    """Scores the validation split; made once, called whenever the loop wants to know."""

    def __init__(self, recipe: Recipe, data: DataManifest) -> None:
        self._context = recipe.model.context_length
        self._eod = data.eod_id if recipe.train.document_masking else None
        self._token_bytes = data.vocab.token_bytes
        self._streams = [TokenStream(source.prefixes, source.name, data.vocab_size) for source in data.validation]
        available = [max(0, stream.length - 1) for stream in self._streams]
        fraction = min(1.0, recipe.train.validation.max_tokens / max(1, sum(available)))
        # (stream, first token, targets) of each window
        self._windows = [
            (index, start, min(self._context, targets - start))
            for index, targets in enumerate(math.ceil(length * fraction) for length in available)
            for start in range(0, targets, self._context)
        ]

    def __call__(self, engine: Engine) -> dict[str, float]:
        """`val/loss` (nats per token), `val/perplexity` and `val/bits_per_byte`; empty without a validation split.

        Every rank must call it, and gets the same answer.
        """
        if not self._windows:
            return {}
        rank, ranks, size = engine.rows.rank, engine.rows.count, engine.plan.micro_batch
        mine = self._windows[rank::ranks]
        # The same number of forward passes on every rank, because ZeRO-3 gathers weights in each.
        rounds = -(-len(self._windows) // (ranks * size))
        nats = torch.zeros((), dtype=torch.float64, device=engine.device)
        targets = target_bytes = 0
        for start in range(0, rounds * size, size):
            batch = engine.rows.cut(self._batch(mine[start : start + size], size))
            nats += engine.score(batch)
            targets += int(batch.weights.sum())
            target_bytes += batch.target_bytes
        total_nats, total_targets, total_bytes = engine.sum([float(nats), targets, target_bytes])
        loss = total_nats / total_targets
        return {
            "val/loss": loss,
            "val/perplexity": math.exp(min(loss, 700.0)),  # a float ends near exp(709)
            "val/bits_per_byte": total_nats / math.log(2) / max(total_bytes, 1.0),
        }

    def _batch(self, windows: list[tuple[int, int, int]], size: int) -> Batch:
        """These windows, and empty rows up to `size`."""
        tokens = np.zeros((size, self._context + 1), dtype=np.int64)
        weights = torch.zeros(size, self._context)
        target_bytes = 0
        for row, (stream, start, count) in enumerate(windows):
            tokens[row, : count + 1] = self._streams[stream].read(start, count + 1)
            weights[row, :count] = 1.0
            target_bytes += int(self._token_bytes[tokens[row, 1 : count + 1]].sum(dtype=np.int64))
        whole = torch.from_numpy(tokens)
        positions = None if self._eod is None else document_positions(tokens[:, :-1] == self._eod)
        inputs = whole[:, :-1].contiguous(), whole[:, 1:].contiguous(), weights
        return Batch(*inputs, target_bytes, fresh=False, positions=positions)

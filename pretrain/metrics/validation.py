"""Measures loss, perplexity and bits per byte on the validation split.

The first `train.validation.max_tokens` targets, an equal fraction of every source, in windows of the context length
laid side by side; the last window of a source may be shorter. What is reported are ratios of sums over all of them, so
the batch size and the number of ranks change nothing but rounding. A model trained with document masking is scored with
it: documents in one window do not see each other.

Beside them stands what the frequencies of tokens alone would give, a unigram model of the training split: a model that
is no better has learnt nothing of the order of tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest, TokenStream
from pretrain.batches.source import Batch, document_positions
from pretrain.engine.engine import Engine

_COUNTED_TOKENS = 2**20  # of the training split, for the frequencies of tokens

Window = tuple[int, int, int]  # source, first token, targets


@dataclass(frozen=True)
class TargetSums:
    """Sums over targets: nats, the targets themselves, and their bytes of text."""

    nats: float
    targets: float
    target_bytes: float

    def __add__(self, other: TargetSums) -> TargetSums:
        return TargetSums(self.nats + other.nats, self.targets + other.targets, self.target_bytes + other.target_bytes)

    @property
    def bits_per_byte(self) -> float:
        """The unit that does not depend on the vocabulary."""
        return self.nats / math.log(2) / max(self.target_bytes, 1.0)


class Validator:
    """Scores the validation split; made once, called whenever the loop wants to know."""

    def __init__(self, recipe: Recipe, data: DataManifest) -> None:
        self._context = recipe.model.context_length
        self._eod = data.eod_id if recipe.train.document_masking else None
        self._token_bytes = data.vocab.token_bytes
        self._streams = [TokenStream(source.prefixes, source.name, data.vocab_size) for source in data.validation]
        available = [max(0, stream.length - 1) for stream in self._streams]
        fraction = min(1.0, recipe.train.validation.max_tokens / max(1, sum(available)))
        self._windows = [
            (index, start, min(self._context, targets - start))
            for index, targets in enumerate(math.ceil(length * fraction) for length in available)
            for start in range(0, targets, self._context)
        ]
        self._names = [source.name for source in data.validation]
        self._by_source = recipe.train.validation.by_source and len({window[0] for window in self._windows}) > 1
        self._data = data
        self._unigram: float | None = None  # bits per byte, of the same targets

    def __call__(self, engine: Engine) -> dict[str, float]:
        """`val/loss` (nats per token), `val/perplexity` and `val/bits_per_byte`; empty without a validation split.

        With several sources also `val/bits_per_byte/SOURCE`, and `val/unigram_bits_per_byte` for comparison. Every rank
        must call it, and gets the same answer.
        """
        if not self._windows:
            return {}
        groups = [self._windows]
        if self._by_source:  # a batch has rows of one source
            groups = [[one for one in self._windows if one[0] == index] for index in range(len(self._streams))]
        sums = [self._sums(engine, group) for group in groups]
        whole = sum(sums, start=TargetSums(0.0, 0.0, 0.0))
        if self._unigram is None:
            self._unigram = self._unigram_bits_per_byte()
        loss = whole.nats / whole.targets
        named = zip(self._names, sums, strict=True) if self._by_source else ()
        sources = {f"val/bits_per_byte/{name}": one.bits_per_byte for name, one in named if one.targets}
        return {
            "val/loss": loss,
            "val/perplexity": math.exp(min(loss, 700.0)),  # a float ends near exp(709)
            "val/bits_per_byte": whole.bits_per_byte,
            "val/unigram_bits_per_byte": self._unigram,
            **sources,
        }

    def _sums(self, engine: Engine, windows: list[Window]) -> TargetSums:
        """The sums over these windows, on all ranks."""
        rank, ranks, size = engine.rows.rank, engine.rows.count, engine.plan.micro_batch
        mine = windows[rank::ranks]
        # The same number of forward passes on every rank, because ZeRO-3 gathers weights in each.
        rounds = -(-len(windows) // (ranks * size))
        nats = torch.zeros((), dtype=torch.float64, device=engine.device)
        targets = target_bytes = 0
        for start in range(0, rounds * size, size):
            chosen = mine[start : start + size]
            whole = self._batch(chosen, size)
            nats += self._score(engine, whole, chosen)
            batch = engine.rows.cut(whole)
            targets += int(batch.weights.sum())
            target_bytes += batch.target_bytes
        return TargetSums(*engine.sum([float(nats), targets, target_bytes]))

    def _score(self, engine: Engine, batch: Batch, windows: list[Window]) -> Tensor:
        """The nats of this rank's part of a batch of these windows, fp64; every rank takes part."""
        return engine.score(engine.rows.cut(batch))

    def _unigram_bits_per_byte(self) -> float:
        """Bits per byte of the same targets by the frequencies of tokens in the training split, each count plus one."""
        streams = [TokenStream(source.prefixes, source.name, self._data.vocab_size) for source in self._data.train]
        share = min(1.0, _COUNTED_TOKENS / max(1, sum(stream.length for stream in streams)))
        size = len(self._token_bytes)
        counts = np.ones(size) + sum(
            np.bincount(stream.read(0, int(stream.length * share)), minlength=size) for stream in streams
        )
        nats = math.log(counts.sum()) - np.log(counts)  # (V,)
        targets = np.zeros(size)
        for index, start, count in self._windows:
            targets += np.bincount(self._streams[index].read(start + 1, count), minlength=size)
        return TargetSums(float(targets @ nats), float(targets.sum()), float(targets @ self._token_bytes)).bits_per_byte

    def _batch(self, windows: list[Window], size: int) -> Batch:
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

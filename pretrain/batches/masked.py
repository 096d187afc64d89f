"""Hides part of each row's targets: batches of masked diffusion, a pure function of any other batches and the step.

Of a row's n targets exactly k are hidden, every set of k alike, and k is uniform over 1 … n. Each hidden target counts
n / k, so the weights of a row sum to n, and the expected loss is that of MDLM's 1 / t weighting (Sahoo et al.,
arXiv:2406.07524) and of a mean over all orders of predicting (Uria et al., arXiv:1310.1757): an upper bound of the
row's negative log-likelihood. LLaDA's evaluation draws k in the same way (arXiv:2502.09992).

The shift of language modelling is kept: position i predicts token i + 1, so weights of a causal model can be a start
(DiffuLLaMA, arXiv:2410.17891). Target i is also input i + 1, and there the mask token takes its place. The first input
is always seen and the last target is never an input; neither changes that what is predicted is not seen.

The hidden fractions of the rows of a global batch lie evenly between 0 and 1, moved by one random number a step, which
makes the loss of a step far less noisy. All random numbers are counted (`pretrain.batches.splitmix`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from data_prep.tokens.shards import DocumentSpan
from pretrain.batches.source import Batch
from pretrain.batches.splitmix import key_uniforms, noise_keys
from pretrain.batches.trace import TracedBatches

_LEVEL, _ORDER = "masked diffusion: level", "masked diffusion: order"


def hidden_weights(
    counted: NDArray[np.bool_], levels: NDArray[np.float64], order: NDArray[np.float64]
) -> NDArray[np.float32]:
    """How much each target counts: n / k where it is hidden, else 0; of a row without targets 0 everywhere.

    Args:
        counted: (B, T), which targets there are: n of them in a row.
        levels: (B,) in [0, 1): k = 1 + floor(level x n).
        order: (B, T), any numbers: the k targets with the smallest are hidden.
    """
    n = counted.sum(axis=1)
    k = np.minimum(1 + (levels * n).astype(np.int64), n)
    ranks = np.where(counted, order, np.inf).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    each = n / np.maximum(k, 1)
    weights: NDArray[np.float32] = np.where(ranks < k[:, None], each[:, None], 0.0).astype(np.float32)
    return weights


def masked(batch: Batch, mask_id: int, levels: NDArray[np.float64], order: NDArray[np.float64]) -> Batch:
    """The batch with part of its targets hidden; arguments as of `hidden_weights`.

    Of a batch with `positions` the first input of a document stays, because no other document sees it.
    """
    counted = batch.weights.numpy() > 0
    weights = torch.from_numpy(hidden_weights(counted, levels, order))
    tokens = batch.tokens.clone()
    # Where pieces of documents lie side by side, an input need not be the target before it.
    is_target = (tokens[:, 1:] == batch.targets[:, :-1]) & (weights[:, :-1] > 0)
    if batch.positions is not None:
        is_target &= batch.positions[:, 1:] > 0
    tokens[:, 1:][is_target] = mask_id
    return replace(batch, tokens=tokens, weights=weights, read=int(counted.sum()))


def evenly_apart(seed: int, name: str, numbers: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """(N, count) levels: for each of the numbers, `count` that lie evenly apart, each uniform in [0, 1)."""
    offsets = key_uniforms(noise_keys(seed, f"{_LEVEL}, {name}", numbers, np.zeros_like(numbers)), 0)
    levels: NDArray[np.float64] = (np.arange(count) / count + offsets[:, None]) % 1.0
    return levels


def random_order(seed: int, name: str, rows: NDArray[np.int64], draw: int, width: int) -> NDArray[np.float64]:
    """(B, width) independent numbers in [0, 1) of these rows, counted under a name, in a draw."""
    keys = noise_keys(seed, f"{_ORDER}, {name}", rows, np.full(len(rows), draw))
    return key_uniforms(keys[:, None], np.arange(width)[None])


class MaskedBatches:
    """The rows of a source, with part of their targets hidden.

    Args:
        source: whose targets with a weight can be hidden.
        mask_id: takes their place among the inputs.
        seed: the recipe's.
    """

    def __init__(self, source: TracedBatches, mask_id: int, seed: int) -> None:
        self._source, self._mask_id, self._seed = source, mask_id, seed
        self.global_batch, self.opens_with_input = source.global_batch, source.opens_with_input

    @property
    def windows(self) -> int:
        """Rows of one epoch."""
        return self._source.windows

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """Rows [rank*G/ranks, (rank+1)*G/ranks) of the global batch of `step`; never `fresh`: a bound is no code."""
        batch = self._source.batch(step, rank, ranks)
        rows, width = batch.tokens.shape
        mine = slice(rank * rows, (rank + 1) * rows)
        levels = evenly_apart(self._seed, "train", np.array([step]), self.global_batch)[0, mine]
        numbers = step * self.global_batch + np.arange(self.global_batch)[mine]
        order = random_order(self._seed, "train", numbers, 0, width)
        return replace(masked(batch, self._mask_id, levels, order), fresh=False)

    def documents(self, step: int) -> list[list[DocumentSpan]]:
        """For each row of the global batch: the documents in it."""
        return self._source.documents(step)

"""Predictors of masked tokens without a model: conditionals of a known joint distribution, or of none."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pretrain.denoising.predictor import LOWEST, Tokens


class Joint:
    """The conditionals of a joint distribution of n tokens behind a begin token; those of a row's rest are 0.

    Ids 0 to v - 1 are tokens, v is the mask and v + 1 the begin token.
    """

    def __init__(self, joint: np.ndarray) -> None:
        """`joint`: (v, …, v), n times, of positive probabilities."""
        self.joint = joint
        self.length, self.ids = joint.ndim, joint.shape[0]
        self.mask_id, self.begin, self.vocab_size = self.ids, self.ids + 1, self.ids + 2
        self.context_length = self.length + 1
        self._known: dict[tuple[int, ...], np.ndarray] = {}
        self.read: list[tuple[int, ...]] = []

    def logits_of(self, row: Tokens, place: int) -> np.ndarray:
        """Logits (v,) of the token at a place of 1 to n, given those of the row that are no masks."""
        key = (place, *map(int, row))
        if key not in self._known:
            self._known[key] = self._logits(key)
        return self._known[key]

    def _logits(self, key: tuple[int, ...]) -> np.ndarray:
        place, _, *row = key
        seen = {index: token for index, token in enumerate(row) if token < self.ids and index != place - 1}
        part = self.joint[tuple(seen.get(index, slice(None)) for index in range(self.length))]
        own = sorted(set(range(self.length)) - seen.keys()).index(place - 1)
        sums: np.ndarray = part.sum(axis=tuple(axis for axis in range(part.ndim) if axis != own))
        return np.log(sums)

    def states(self, rows: Sequence[Tokens]) -> Tensor:
        self.read += [tuple(map(int, row)) for row in rows]
        out = torch.full((len(rows), max(map(len, rows)), self.vocab_size), LOWEST)
        for number, row in enumerate(rows):
            for column in range(min(len(row), self.length)):
                out[number, column, : self.ids] = torch.from_numpy(self.logits_of(row, column + 1))
        return out

    def logits(self, states: Tensor) -> Tensor:
        return states.clone()


class Inconsistent(Joint):
    """Conditionals that belong to no joint distribution, as those of a model do: each order has other nats."""

    def _logits(self, key: tuple[int, ...]) -> np.ndarray:
        values: np.ndarray = np.random.default_rng(key).normal(0, 2, self.ids)
        return values

    def nats(self, row: Tokens, order: Sequence[int]) -> float:
        """Nats of the tokens behind the begin token, one by one in an order of their places; the last is no input."""
        hidden, total = row.copy(), 0.0
        hidden[list(order)] = self.mask_id
        for place in order:
            logits = self.logits_of(hidden[:-1], place)
            total -= float(logits[row[place]] - np.log(np.exp(logits).sum()))
            hidden[place] = row[place]
        return total

    def mean_nats(self, row: Tokens, places: Sequence[int]) -> float:
        """The mean over all orders of these places."""
        return float(np.mean([self.nats(row, order) for order in itertools.permutations(places)]))


def random_joint(length: int, ids: int, seed: int = 0) -> np.ndarray:
    """A joint distribution of tokens that depend on each other."""
    return np.random.default_rng(seed).dirichlet(np.ones(ids**length)).reshape((ids,) * length)

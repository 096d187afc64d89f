"""Measures the bound of masked diffusion on the validation split: an upper bound of the nats of each window.

The same windows and sums as for a causal model, so the figures stand side by side. Each window is scored in several
draws, whose hidden fractions lie evenly apart; which targets are hidden depends on the seed and the window alone, so
every validation of a run, on any ranks, hides the same.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest
from pretrain.batches.masked import evenly_apart, masked, random_order
from pretrain.batches.source import Batch
from pretrain.engine.engine import Engine
from pretrain.metrics.validation import Validator, Window

_NAME = "validation"
_WINDOWS = 2**40  # of a source: more than it has tokens


class BoundValidator(Validator):
    """Scores the validation split under masks."""

    def __init__(self, recipe: Recipe, data: DataManifest, mask_id: int, draws: int) -> None:
        """`mask_id` takes the place of what is hidden; `draws`: for each window."""
        super().__init__(recipe, data)
        self._mask_id, self._draws, self._seed = mask_id, draws, recipe.seed

    def _score(self, engine: Engine, batch: Batch, windows: list[Window]) -> Tensor:
        rows, width = batch.tokens.shape
        numbers = np.zeros(rows, dtype=np.int64)  # rows beyond the windows have no targets
        numbers[: len(windows)] = [source * _WINDOWS + start for source, start, _ in windows]
        levels = evenly_apart(self._seed, _NAME, numbers, self._draws)  # (B, draws)
        scores = [
            super(BoundValidator, self)._score(
                engine,
                masked(batch, self._mask_id, levels[:, draw], random_order(self._seed, _NAME, numbers, draw, width)),
                windows,
            )
            for draw in range(self._draws)
        ]
        total: Tensor = sum(scores[1:], start=scores[0])
        return total / self._draws

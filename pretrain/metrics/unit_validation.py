"""Measures an objective on held-out conversations or pairs.

Units are taken from the start of the validation split, the same share of every source, as far as
`train.validation.max_tokens` reaches. What is reported are ratios of sums over all of them, so neither the batch size
nor the number of ranks changes more than rounding.
"""

from __future__ import annotations

import math

import torch

from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest
from pretrain.batches.source import Batch
from pretrain.batches.unit_rows import References, UnitRows
from pretrain.batches.units import Weigh
from pretrain.engine.engine import Engine


class UnitValidator:
    """Scores held-out units; made once, called whenever the loop wants to know. Every rank must call it."""

    def __init__(
        self, recipe: Recipe, data: DataManifest, weigh: Weigh, per_unit: int = 1, references: References | None = None
    ) -> None:
        """`weigh`, `per_unit` and `references` as of `UnitRows`."""
        self._rows = UnitRows(data.validation, data.vocab, recipe.model.context_length, weigh, per_unit, references)
        tokens = sum(source.tokens for source in data.validation)
        fraction = min(1.0, recipe.train.validation.max_tokens / max(1, tokens))
        self._documents = [
            (number, document)
            for number, source in enumerate(self._rows.sources)
            for document in range(math.ceil(source.documents_count // per_unit * fraction) * per_unit)
        ]

    def __call__(self, engine: Engine) -> dict[str, float]:
        """`val/loss` and the objective's statistics for pairs; empty without held-out units."""
        sums, count, _ = self._sums(engine)
        names = ("loss", *engine.module.stat_names)
        return {f"val/{name}": value / count for name, value in zip(names, sums, strict=True)} if count else {}

    def _sums(self, engine: Engine) -> tuple[list[float], float, float]:
        """Sums of loss and statistics, what they are a mean over, and bytes that were learnt, over all ranks."""
        rank, ranks = engine.rows.rank, engine.rows.count
        step = self._rows.per_unit
        size = max(step, engine.plan.micro_batch // step * step)
        units = [self._documents[first : first + step] for first in range(0, len(self._documents), step)][rank::ranks]
        mine = [document for unit in units for document in unit]
        # The same number of forward passes on every rank, because ZeRO-3 gathers weights in each.
        rounds = -(-len(self._documents) // (ranks * size))
        sums = torch.zeros(1 + len(engine.module.stat_names), dtype=torch.float64, device=engine.device)
        count = learnt_bytes = 0.0
        for start in range(0, rounds * size, size):
            batch = self._rows.batch(mine[start : start + size], rows=size)
            sums += engine.measure(batch.rows(0, size))
            count += _count(batch)
            learnt_bytes += batch.target_bytes
        *totals, count, learnt_bytes = engine.sum([*sums.tolist(), count, learnt_bytes])
        return totals, count, learnt_bytes


def _count(batch: Batch) -> float:
    return float(batch.weights.sum()) if batch.count is None else batch.count


class ConversationValidator(UnitValidator):
    """Measures the answers in held-out conversations."""

    def __call__(self, engine: Engine) -> dict[str, float]:
        """`val/loss` (nats per learnt token), `val/perplexity` and `val/bits_per_byte` of the answers."""
        (nats, *_), count, learnt_bytes = self._sums(engine)
        if not count:
            return {}
        return {
            "val/loss": nats / count,
            "val/perplexity": math.exp(min(nats / count, 700.0)),  # a float ends near exp(709)
            "val/bits_per_byte": nats / math.log(2) / max(learnt_bytes, 1.0),
        }

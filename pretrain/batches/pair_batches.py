"""Makes batches of preference pairs: rows 2i and 2i + 1 are an answer that was preferred and one that was not.

A slot is a pair, so a step reads half as many slots as its batch has rows. Rows are padded on the right. As with
windows, all is a pure function of (recipe, step).
"""

from __future__ import annotations

import hashlib

import torch

from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest, DocumentSpan
from pretrain.batches.mixture import plan_mixture, slots_of
from pretrain.batches.slots import StepSlots
from pretrain.batches.source import Batch
from pretrain.batches.unit_rows import References, UnitRows
from pretrain.batches.units import Weigh


class PairBatches:
    """Pairs in the order of the recipe.

    Raises:
        ValueError: without a pair, when one is longer than the context, or shares cannot be had (see `WindowOrder`).
    """

    opens_with_input = False  # rows begin with a target's document, not with the token before it

    def __init__(
        self, recipe: Recipe, manifest: DataManifest, weigh: Weigh, references: References | None = None
    ) -> None:
        """`weigh` and `references` as of `UnitRows`."""
        self.global_batch = recipe.train.global_batch_size
        order = plan_mixture(recipe, manifest)
        self._slots = StepSlots(order, slots_of(recipe, 1))
        shards = {source.name: source for source in manifest.train}
        sources = [shards[source.name] for source in order.sources]
        self._rows = UnitRows(sources, manifest.vocab, recipe.model.context_length, weigh, 2, references)
        self.windows = sum(2 * source.windows for source in order.sources)

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """Rows [rank*G/ranks, (rank+1)*G/ranks) of the global batch of `step`, whole pairs."""
        assert self.global_batch % (2 * ranks) == 0
        share = self.global_batch // ranks
        documents = self._documents(step)[rank * share : (rank + 1) * share]
        return self._rows.batch(documents, fresh=not self._slots.windows(step).epoch.any())

    def digest(self, step: int, ranks: int = 1) -> str:
        """SHA-256 of the global batch of `step`, put together from `ranks` shares."""
        digest = hashlib.sha256()
        shares = [self.batch(step, rank, ranks) for rank in range(ranks)]
        for parts in zip(*((*share.inputs, *share.columns.values()) for share in shares), strict=True):
            digest.update(torch.cat(parts).numpy().tobytes())
        return digest.hexdigest()

    def documents(self, step: int) -> list[list[DocumentSpan]]:
        """For each row of the global batch: its document."""
        return [self._rows.sources[source].documents(document) for source, document in self._documents(step)]

    def _documents(self, step: int) -> list[tuple[int, int]]:
        found = self._slots.windows(step)
        pairs = zip(found.source.tolist(), found.window.tolist(), strict=True)
        return [(source, 2 * pair + side) for source, pair in pairs for side in (0, 1)]

"""Gives the prompts of each rollout, with what their answers are judged by.

A slot is a prompt: rollout r takes the slots [rP, (r + 1)P) with P prompts a rollout, and feeds `rollout.updates`
steps. Every rank gets all of them, because rollouts are divided between ranks by length. A pure function of
(recipe, step).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from configs.schema.objectives import GroupPolicy, ProximalPolicy, rows_per_unit
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest, DocumentSpan
from pretrain.batches.mixture import plan_mixture
from pretrain.batches.slots import StepSlots
from pretrain.batches.units import UnitWindows


@dataclass(frozen=True)
class PromptUnit:
    """A prompt, and what is known about the answers to it."""

    slot: int  # place in the order of the run: names its random numbers
    source: str
    document: int  # number in its source
    id: str  # of the document it was made from
    ids: tuple[int, ...]  # from the first token of all texts to `<|assistant|>`
    reference: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptBatch:
    """All prompts of a rollout, the same on every rank."""

    prompts: list[PromptUnit]
    fresh: bool  # none was read in an earlier epoch

    def pinned(self) -> PromptBatch:
        """Itself: prompts stay where they are."""
        return self


class PromptBatches:
    """Prompts in the order of the recipe.

    Raises:
        ValueError: without a prompt, or when one is longer than the context.
    """

    def __init__(self, recipe: Recipe, manifest: DataManifest) -> None:
        objective = recipe.train.objective
        assert isinstance(objective, GroupPolicy | ProximalPolicy)
        self.per_rollout, self._updates = objective.rollout.prompts, objective.rollout.updates
        order = plan_mixture(recipe, manifest)
        self._slots = StepSlots(order, self.per_rollout)
        shards = {source.name: source for source in manifest.train}
        context, self._eod = recipe.model.context_length, manifest.eod_id
        self._sources = [
            UnitWindows(shards[source.name], manifest.vocab_size, context, self._eod) for source in order.sources
        ]
        self.windows = sum(source.windows for source in order.sources) * rows_per_unit(objective)

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> PromptBatch:
        """The prompts of the rollout that feeds `step`."""
        rollout = step // self._updates
        found = self._slots.windows(rollout)
        first = rollout * self.per_rollout
        places = zip(found.source.tolist(), found.window.tolist(), strict=True)
        prompts = [self._prompt(first + place, *where) for place, where in enumerate(places)]
        return PromptBatch(prompts, fresh=not found.epoch.any())

    def digest(self, step: int, ranks: int = 1) -> str:
        """SHA-256 of the prompts of `step`."""
        facts = [(unit.slot, unit.ids, unit.reference, unit.metadata) for unit in self.batch(step).prompts]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def documents(self, step: int) -> list[list[DocumentSpan]]:
        """For each prompt: its document."""
        found = self._slots.windows(step // self._updates)
        places = zip(found.source.tolist(), found.window.tolist(), strict=True)
        return [self._sources[source].documents(document) for source, document in places]

    def _prompt(self, slot: int, number: int, document: int) -> PromptUnit:
        return prompt_of(self._sources[number], slot, document, self._eod)


def prompt_of(source: UnitWindows, slot: int, document: int, eod: int) -> PromptUnit:
    """The prompt that is document number `document` of a source."""
    ids = (eod, *source.ids(document)[:-1].tolist())
    row = source.sidecar(document)
    reference, metadata = row.get("reference"), json.loads(row.get("metadata") or "{}")
    return PromptUnit(slot, source.name, document, str(row["id"]), ids, reference, metadata)


def validation_prompts(recipe: Recipe, manifest: DataManifest, most: int) -> list[PromptUnit]:
    """The first prompts of the validation split, an equal fraction of every source, `most` in all (but one each)."""
    total = sum(source.documents for source in manifest.validation)
    context, found = recipe.model.context_length, list[PromptUnit]()
    for shards in manifest.validation:
        source = UnitWindows(shards, manifest.vocab_size, context, manifest.eod_id)
        share = -(-shards.documents * min(most, total) // total)
        found += [prompt_of(source, len(found), number, manifest.eod_id) for number in range(share)]
    return found

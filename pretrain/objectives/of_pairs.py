"""Objectives that learn from preference pairs: a reward model, and DPO with its kin."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from configs.schema.objectives import Preference, RewardModelling
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest
from pretrain.batches.pair_batches import PairBatches
from pretrain.batches.source import Batch
from pretrain.batches.trace import SpansOf, SpansOfRanks
from pretrain.batches.unit_rows import References
from pretrain.batches.units import Weigh, last_answer, scored
from pretrain.engine.engine import Engine
from pretrain.engine.loss_module import LossModule
from pretrain.metrics.unit_validation import UnitValidator
from pretrain.model.transformer import Transformer
from pretrain.model.weight_names import REWARD_HEAD
from pretrain.objectives.objective import Objective, Read, Validate
from pretrain.objectives.preference import PreferenceOptimisation
from pretrain.objectives.reference import StoredReference, load_reference
from pretrain.objectives.reward_modelling import RewardModel


class _OfPairs(Objective):
    """What both have in common: pairs in the order of the recipe, and their statistics on held-out pairs."""

    weigh: Weigh  # the weights of a text's targets

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        # Of training and of validation; none where the loss needs none.
        self._references: tuple[References | None, References | None] = (None, None)

    def batches(self, data: DataManifest, engine: Engine) -> PairBatches:
        return PairBatches(self.recipe, data, type(self).weigh, self._references[0])

    def made_up(self, batch: Batch) -> Batch:
        """Pairs of drawn tokens; their reference is a model that knows nothing, so that no loss is saturated."""
        rows, width = batch.tokens.shape
        ignorance = -width * math.log(self.recipe.model.vocab_size or 2**15)
        columns = {"margin": torch.zeros(rows), "reference": torch.full((rows,), ignorance, dtype=torch.float64)}
        return replace(batch, columns=columns, count=rows / 2)

    def validator(self, data: DataManifest, engine: Engine) -> Validate:
        return UnitValidator(self.recipe, data, type(self).weigh, 2, self._references[1])

    def spans(self, data: DataManifest, batches: PairBatches, ranks: int) -> SpansOf:
        return SpansOfRanks(batches, data.vocab, ranks, self.recipe.train.parallel.sharing)


class RewardTraining(_OfPairs):
    """Trains a reward model (Bradley and Terry)."""

    weigh = staticmethod(scored)

    def __init__(self, recipe: Recipe, settings: RewardModelling) -> None:
        super().__init__(recipe)
        self._settings = settings

    def module(self, model: Transformer) -> LossModule:
        return RewardModel(model, self._settings, self.recipe.train.loss_chunk)

    def initial(self, read: Read) -> Read:
        head = torch.zeros(1, self.recipe.model.hidden_size)
        return lambda name: head if name == REWARD_HEAD else read(name)


class PreferenceTuning(_OfPairs):
    """Trains a policy on pairs directly."""

    weigh = staticmethod(last_answer)

    def __init__(self, recipe: Recipe, settings: Preference) -> None:
        super().__init__(recipe)
        self._settings = settings

    def module(self, model: Transformer) -> LossModule:
        return PreferenceOptimisation(model, self._settings, self.recipe.train.loss_chunk)

    def prepare(self, data: DataManifest, engine: Engine, base: str | None, set_base: Callable[[], None]) -> None:
        if not self._settings.needs_reference:
            return
        if base is None:
            raise ValueError(
                f"train.objective.loss {self._settings.loss} compares with the model that training starts from; set "
                "train.init_from, or use simpo or orpo"
            )
        stored = StoredReference(self.recipe, data, base, engine.precision)
        self._references = load_reference(stored, engine, set_base)

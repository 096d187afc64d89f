"""Supervised fine-tuning: language modelling of the assistant's answers, with what it is given left out."""

from __future__ import annotations

from functools import partial

from configs.schema.objectives import Supervised
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest
from pretrain.batches.source import BatchSource
from pretrain.batches.trace import SpansOf, SpansOfRanks
from pretrain.batches.units import learnt
from pretrain.engine.engine import Engine
from pretrain.engine.loss_module import LossModule
from pretrain.metrics.unit_validation import ConversationValidator
from pretrain.model.transformer import Transformer
from pretrain.objectives.language_modelling import LanguageModelling
from pretrain.objectives.objective import Objective, Validate


class SupervisedTuning(Objective):
    """Reads conversations; a mean over the tokens that the assistant writes, each answer's end among them."""

    def __init__(self, recipe: Recipe, settings: Supervised) -> None:
        super().__init__(recipe)
        self._settings = settings

    def module(self, model: Transformer) -> LossModule:
        return LanguageModelling(model, self.recipe.train.loss_chunk)

    def batches(self, data: DataManifest, engine: Engine) -> BatchSource:
        return BatchSource(self.recipe, data)

    def validator(self, data: DataManifest, engine: Engine) -> Validate:
        return ConversationValidator(self.recipe, data, partial(learnt, train_on=self._settings.train_on))

    def spans(self, data: DataManifest, batches: BatchSource, ranks: int) -> SpansOf:
        return SpansOfRanks(batches, data.vocab, ranks, self.recipe.train.parallel.sharing)

"""Trains the negative log-likelihood of the next token, in nats: language modelling."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from configs.safety.user_code import UserCode
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest
from pretrain.batches.source import BatchSource
from pretrain.batches.trace import SpansOf, SpansOfRanks
from pretrain.engine.engine import Engine
from pretrain.engine.loss_module import LossModule
from pretrain.metrics.validation import Validator
from pretrain.model.transformer import Transformer
from pretrain.objectives.objective import Objective, Validate


class LanguageModelling(LossModule):
    """Sum of weighted nats."""

    def loss(
        self, tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None, **columns: Tensor
    ) -> Tensor:
        """The nats themselves."""
        return self.nats(tokens, targets, weights, positions)


class Pretraining(Objective):
    """Language modelling on windows of documents, with the nats themselves as loss or with one of the user's."""

    def __init__(self, recipe: Recipe, make: Callable[[Transformer, int | None], LossModule], codes: bool) -> None:
        """`make`: the module of a model and `train.loss_chunk`; `codes`: its loss is in nats, and nothing else."""
        super().__init__(recipe)
        self._make, self.codes_text = make, codes

    def module(self, model: Transformer) -> LossModule:
        return self._make(model, self.recipe.train.loss_chunk)

    def batches(self, data: DataManifest, engine: Engine) -> BatchSource:
        return BatchSource(self.recipe, data)

    def validator(self, data: DataManifest, engine: Engine) -> Validate:
        return Validator(self.recipe, data)

    def spans(self, data: DataManifest, batches: BatchSource, ranks: int) -> SpansOf:
        return SpansOfRanks(batches, data.vocab, ranks, self.recipe.train.parallel.sharing)


def language_modelling(recipe: Recipe) -> Pretraining:
    """The objective of a recipe that names none."""
    return Pretraining(recipe, LanguageModelling, codes=True)


def of_user(recipe: Recipe, code: UserCode) -> Pretraining:
    """The objective of code that may run.

    `module` raises `ValueError` for code that makes no `LossModule` without weights of its own.
    """

    def make(model: Transformer, chunk: int | None) -> LossModule:
        made = code.load()(model, chunk, **code.options)
        if not isinstance(made, LossModule):
            raise ValueError(f"{code.file}:{code.name} made a {type(made).__name__}; an objective is a LossModule")
        if foreign := [name for name, _ in made.named_parameters() if not name.startswith("model.")]:
            raise ValueError(
                f"{code.file}:{code.name} has weights of its own ({foreign[0]}); checkpoints hold those of the model "
                "alone"
            )
        return made

    return Pretraining(recipe, make, codes=False)

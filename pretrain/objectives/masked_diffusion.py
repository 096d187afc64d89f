"""Trains masked diffusion: the tokens that `pretrain.batches.masked` hides, from those on both sides that it leaves.

The loss is the nats of language modelling over batches with other inputs and weights, and nothing else of training
differs. In expectation it is an upper bound of the nats of a text: the evidence lower bound of a variational
autoencoder whose encoder hides tokens and learns nothing (Austin et al., arXiv:2107.03006).

The mask token is a row of the softmax as any other. It is never a target, so it learns to have no probability, as the
rows that pad the vocabulary do; what little it has makes the bound larger, never smaller.
"""

from __future__ import annotations

from configs.schema.chat import MASK
from configs.schema.objectives import MaskedDiffusion
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest
from data_prep.tokens.vocab import Vocab
from pretrain.batches.masked import MaskedBatches
from pretrain.batches.source import BatchSource
from pretrain.batches.trace import SpansOf, SpansOfRanks
from pretrain.engine.engine import Engine
from pretrain.engine.loss_module import LossModule
from pretrain.metrics.bound_validation import BoundValidator
from pretrain.model.transformer import Transformer
from pretrain.objectives.language_modelling import LanguageModelling
from pretrain.objectives.objective import Objective, Validate


def mask_id_of(vocab: Vocab) -> int:
    """The id of the mask token; raises `ValueError` where a vocabulary has none."""
    if vocab.mask_id is None:
        raise ValueError(
            f"the vocabulary has no special token {MASK}, which masked diffusion puts in place of what it hides; add "
            "it to data.tokenizer.special_tokens and prepare the data again"
        )
    return vocab.mask_id


class MaskedDiffusionTraining(Objective):
    """Reads windows of documents; a mean over their targets, of which those count that are hidden."""

    def __init__(self, recipe: Recipe, settings: MaskedDiffusion) -> None:
        super().__init__(recipe)
        self._settings = settings

    def module(self, model: Transformer) -> LossModule:
        return LanguageModelling(model, self.recipe.train.loss_chunk)

    def batches(self, data: DataManifest, engine: Engine) -> MaskedBatches:
        return MaskedBatches(BatchSource(self.recipe, data), mask_id_of(data.vocab), self.recipe.seed)

    def validator(self, data: DataManifest, engine: Engine) -> Validate:
        return BoundValidator(self.recipe, data, mask_id_of(data.vocab), self._settings.validation_draws)

    def spans(self, data: DataManifest, batches: MaskedBatches, ranks: int) -> SpansOf:
        return SpansOfRanks(batches, data.vocab, ranks, self.recipe.train.parallel.sharing)

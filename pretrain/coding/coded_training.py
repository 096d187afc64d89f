"""Trains as always, with one thing more before each update: the tokens of the batch are coded by the weights so far.

The encoder reads the tokens from the shards and writes the stream. The decoder reads the stream and writes the shards.
Both then make the batch from the shards as training does, and the same update of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from configs.common.progress import progress_bar
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest
from pretrain.batches.source import Batch, BatchSource
from pretrain.batches.trace import SpansOf, SpansOfRanks
from pretrain.coding.facts import refuse_engine
from pretrain.coding.strands import Places, Strands
from pretrain.coding.walk import REST, Coder, Walk, rest, rest_rows
from pretrain.engine.engine import Engine
from pretrain.engine.loss_module import LossModule
from pretrain.metrics.validation import Validator
from pretrain.model.transformer import Transformer
from pretrain.objectives.language_modelling import LanguageModelling
from pretrain.objectives.objective import Objective, Validate
from pretrain.phases import Phase


@dataclass(frozen=True)
class NumberedStep:
    """What is read ahead for a step: its number. The tokens are there only when the weights before it are."""

    step: int
    fresh: bool = True

    def pinned(self) -> NumberedStep:
        """Itself: there is nothing to move."""
        return self


class NumberedSteps:
    """Stands for the windows of a source, which are read when they are coded."""

    def __init__(self, windows: int) -> None:
        self.windows = windows

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> NumberedStep:
        """The number of the step."""
        return NumberedStep(step)


class Side(ABC):
    """What is the encoder's alone, or the decoder's."""

    @abstractmethod
    def begin(self, data: DataManifest, engine: Engine) -> tuple[Strands, Coder]:
        """The tokens, and what codes them; raises `ValueError` where this cannot be done."""

    def coded(self, starts: Places, tokens: int) -> None:  # noqa: B027 (the encoder has nothing to do)
        """Is told of rows (R,) that are coded, before the batch is read from the shards."""

    @abstractmethod
    def end(self, data: DataManifest, engine: Engine) -> None:
        """Is told that all tokens are coded."""


class CodedTraining(Objective):
    """Language modelling that codes each batch before its update, and the rest of the corpus after the last one."""

    codes_text = True
    rolls_out = True  # a batch takes long to make, and nothing can stand for it before its step
    resumes = False

    def __init__(self, recipe: Recipe, side: Side, validates: bool) -> None:
        """`validates`: as the recipe says; a decoder has no validation split before the end."""
        super().__init__(recipe)
        self._side, self._validates = side, validates

    def module(self, model: Transformer) -> LossModule:
        return LanguageModelling(model, self.recipe.train.loss_chunk)

    def prepare(self, data: DataManifest, engine: Engine, base: str | None, set_base: Callable[[], None]) -> None:
        refuse_engine(self.recipe, engine)
        self._data, self._source = data, BatchSource(self.recipe, data)
        self._strands, coder = self._side.begin(data, engine)
        self._walk = Walk(self._strands, coder, self.recipe.train.document_masking)

    def batches(self, data: DataManifest, engine: Engine) -> NumberedSteps:
        return NumberedSteps(self._source.windows)

    def experience(self, engine: Engine, read: NumberedStep, step: int) -> Batch:
        context = self.recipe.model.context_length
        places = [self._strands.start_of(name, window, context) for name, window in self._source.placed(step)]
        self._code(engine, np.array(places, dtype=np.int64), context)
        return self._source.batch(step)

    def finish(self, engine: Engine) -> None:
        context, known = self.recipe.model.context_length, self._strands.known
        rows = rest_rows(engine.module.model, context)
        self._walk.kind = REST
        with progress_bar("coding what training left", len(known), enabled=engine.is_main) as bar:
            for starts, width in rest(self._strands, context, rows):
                engine.report_phase(Phase.ROLLOUT)  # begins anew: a phase that lasts too long is taken for a hang
                self._code(engine, starts, width)
                bar.update(int(known.sum()))
        self._side.end(self._data, engine)

    def validator(self, data: DataManifest, engine: Engine) -> Validate:
        return Validator(self.recipe, data) if self._validates else lambda _: {}

    def spans(self, data: DataManifest, batches: NumberedSteps, ranks: int) -> SpansOf:
        return SpansOfRanks(self._source, data.vocab, ranks, self.recipe.train.parallel.sharing)

    def _code(self, engine: Engine, starts: Places, width: int) -> None:
        with engine.reading() as model, torch.autocast(engine.device.type, enabled=False):
            self._walk(model, starts, width)
        self._side.coded(starts, width + 1)

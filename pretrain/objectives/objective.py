"""Defines what an objective is to a training session: what it reads, its loss, and what it validates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor

from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest
from pretrain.batches.source import Batch, Batches, drawn_batch
from pretrain.batches.trace import SpansOf
from pretrain.engine.engine import Engine
from pretrain.engine.loss_module import LossModule
from pretrain.model.transformer import Transformer

__all__ = ["LossModule", "NothingToLearn", "Objective", "Validate"]

Read = Callable[[str], Tensor]  # a whole weight by its name, fp32
Validate = Callable[[Engine], dict[str, float]]


class NothingToLearn(ValueError):
    """Training would go on without learning, such as from groups of answers that all have the same reward.

    `Objective.experience` or `check` raises it on every rank; the message says why, and how to mend it.
    """


class Objective(ABC):
    """What a session trains for. Every rank makes one from the same recipe; the loop does not know which one it has."""

    # What `LossGuard` compares with the steps before: `loss`, a name of `LossModule.stat_names`, or nothing.
    watched: str | None = "loss"
    # The loss is the nats of text that is read for the first time: their sum is a code length.
    codes_text: bool = False
    # `experience` draws answers, which takes long.
    rolls_out: bool = False
    # Training can go on from a checkpoint, after a break or to skip what broke it.
    resumes: bool = True

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.state: dict[str, Any] = {}  # what a checkpoint keeps of it, beside weights; JSON

    @abstractmethod
    def module(self, model: Transformer) -> LossModule:
        """Model and loss, for the engine. Other weights are made where those of `model` are (`Transformer.sibling`)."""

    def initial(self, read: Read) -> Read:
        """The weights at the start of training, where they are not what `read` gives: the model's, or new ones."""
        return read

    def prepare(  # noqa: B027 - most objectives need nothing
        self, data: DataManifest, engine: Engine, base: str | None, set_base: Callable[[], None]
    ) -> None:
        """Computes once what later calls need; every rank calls it first, before the weights are set.

        Args:
            data: what is trained on.
            engine: with undefined weights.
            base: fingerprint of the weights of `train.init_from`.
            set_base: gives the engine these weights; every rank must call it.
        """

    @abstractmethod
    def batches(self, data: DataManifest, engine: Engine) -> Batches[Any]:
        """What each step reads, a pure function of recipe and step. Every rank calls it, before weights are set."""

    def experience(self, engine: Engine, read: Any, step: int) -> Batch:
        """The batch of `step` (from 0), from what was read for it. Every rank calls it, between steps."""
        batch: Batch = read
        return batch

    def made_up(self, batch: Batch) -> Batch:
        """A batch of drawn tokens with what else the loss takes, for measurements and checks without data.

        Neither the loss nor its gradient is zero.
        """
        return batch

    def sample(self, engine: Engine, batches: Batches[Any], step: int) -> Batch:
        """This rank's batch of `step`; where experience would make it, one of drawn tokens in its place."""
        rows, model = engine.rows, engine.module.model
        if not self.rolls_out:
            return self.experience(engine, batches.batch(step, rows.rank, rows.count), step)
        plan, width = engine.plan, self.recipe.model.context_length
        seed = step * rows.count + rows.rank
        return self.made_up(drawn_batch(plan.micro_batch * plan.accumulation, width, model.vocab_size, seed))

    def check(self, step: int, loss: float, statistics: dict[str, float]) -> None:  # noqa: B027 (most have nothing)
        """Looks at the results of `step` (from 0) before its update, the same on all ranks; may end training.

        Raises:
            NothingToLearn, ValueError: why the update is not made, and training ends.
        """

    def finish(self, engine: Engine) -> None:  # noqa: B027 (most have nothing)
        """Does what is to be done with the weights after the last update, which are saved; every rank calls it."""

    def boundary(self, done: int) -> bool:
        """Whether training may be saved, and stop, after `done` updates."""
        return True

    @abstractmethod
    def validator(self, data: DataManifest, engine: Engine) -> Validate:
        """What measures the present weights on the validation split; every rank calls it and gets the same."""

    @abstractmethod
    def spans(self, data: DataManifest, batches: Any, ranks: int) -> SpansOf:
        """Finds what some of `ranks` ranks read in a step, for the records of faults."""

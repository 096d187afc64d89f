"""Opens the model of a checkpoint for reading, on the device of this rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from configs.schema.objectives import RewardModelling
from configs.schema.recipe import Recipe
from data_prep.tokens.vocab import Vocab
from eval.reading.reader import LocalReader, Reader, RowScorer
from pretrain.checkpoint.load_weights import load_weights
from pretrain.checkpoint.manifest import CheckpointInfo
from pretrain.parallel.lockstep import ALONE, Lockstep


@dataclass(frozen=True)
class Place:
    """Where an evaluation runs.

    Attributes:
        ranks: the ranks that evaluate together.
        device: of this rank; None: the first GPU, or the CPU.
    """

    ranks: Lockstep = ALONE
    device: torch.device | None = None

    @property
    def own_device(self) -> torch.device:
        """The device of this rank."""
        return self.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")


HERE = Place()


def open_reader(checkpoint: CheckpointInfo, vocab: Vocab, recipe: Recipe, place: Place) -> Reader:
    """Returns a reader of the checkpoint's model on this rank's device.

    Raises:
        ValueError: when the checkpoint is damaged.
    """
    device = place.own_device
    model = load_weights(checkpoint).to(device)
    rewards = _reward_scorer(checkpoint, vocab, device)
    return LocalReader(model, vocab.size, recipe.evaluation.batch_size, rewards)


def _reward_scorer(checkpoint: CheckpointInfo, vocab: Vocab, device: torch.device) -> RowScorer | None:
    """Returns what scores rows of a reward model; None for other models."""
    if not isinstance(checkpoint.recipe.train.objective, RewardModelling):
        return None
    from pretrain.objectives.reward_scorer import RewardScorer, load_reward_model

    return RewardScorer(load_reward_model(checkpoint).to(device), vocab)

"""Opens the model of a checkpoint for reading, on the device of this rank."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from configs.schema.objectives import RewardModelling
from configs.schema.recipe import Recipe
from data_prep.tokens.vocab import Vocab
from eval.reading.bound import BoundReader, Draws
from eval.reading.divided import DividedReader, load_divided
from eval.reading.reader import LocalReader, Reader, RowScorer, precision_of, sizes_for
from pretrain.checkpoint.load_weights import load_weights
from pretrain.checkpoint.manifest import CheckpointInfo
from pretrain.denoising.denoise import Denoiser
from pretrain.denoising.predictor import predictor_of
from pretrain.model.transformer import Transformer
from pretrain.parallel.lockstep import ALONE, Lockstep
from pretrain.sizes.shapes import parameter_shapes


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
    dtype = torch.bfloat16 if reading_precision(recipe, device) == "bf16" else torch.float32
    if place.ranks.of_main(lambda: _divides(checkpoint, vocab, recipe, place, dtype), "division of the weights"):
        model, weights = load_divided(checkpoint, place.ranks, device, dtype)
        return DividedReader(reader_of(model, vocab, recipe), weights)
    model = load_weights(checkpoint).to(device, dtype)
    rewards = _reward_scorer(checkpoint, vocab, device)
    return reader_of(model, vocab, recipe, rewards)


def reader_of(
    model: Transformer, vocab: Vocab, recipe: Recipe, rewards: RowScorer | None = None
) -> LocalReader | BoundReader:
    """Returns a reader of a model in evaluation mode that this process holds; of a masked model, one of bounds.

    Raises:
        ValueError: when a masked model's vocabulary has no mask.
    """
    section = recipe.evaluation
    if model.config.causal:
        return LocalReader(model, vocab.size, section.batch_size, rewards, section.batch_tokens)
    size, rows = sizes_for(model, section.batch_size, section.batch_tokens)
    predictor = predictor_of(model, vocab)
    denoiser = Denoiser(predictor, vocab.size, section.denoising, rows, size.tokens)
    draws = Draws(section.bound_draws, recipe.seed)
    return BoundReader(predictor, vocab.size, precision_of(model), denoiser, draws, size)


def _divides(checkpoint: CheckpointInfo, vocab: Vocab, recipe: Recipe, place: Place, dtype: torch.dtype) -> bool:
    """Tells whether the weights are divided between the ranks."""
    config, device = checkpoint.recipe.model, place.own_device
    numbers = sum(math.prod(shape) for _, shape in parameter_shapes(config, config.padded_vocab(vocab.size)))
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    is_reward = isinstance(checkpoint.recipe.train.objective, RewardModelling)
    return place.ranks.count > 1 and not is_reward and must_divide(recipe, numbers * dtype.itemsize, memory)


def must_divide(recipe: Recipe, weights: int, memory: int | None) -> bool:
    """Tells whether a model is divided: as the recipe says, else when it needs more than half of a GPU's memory.

    Args:
        recipe: with `evaluation.divide_weights`.
        weights: bytes of all weights.
        memory: bytes of a GPU; None: on a CPU, where nothing is divided unless the recipe says so.
    """
    wanted = recipe.evaluation.divide_weights
    if wanted is None:
        return memory is not None and weights > memory / 2
    return wanted


def reading_precision(recipe: Recipe, device: torch.device) -> str:
    """Returns `fp32` or `bf16`. Where the recipe leaves it open: bf16 on a GPU that has it, unless trained in fp32.

    A reward model is read in fp32, as in training.
    """
    wanted, trained = recipe.evaluation.precision, recipe.train.precision
    if isinstance(recipe.train.objective, RewardModelling):
        return "fp32"
    if wanted != "auto":
        return wanted
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bf16" if has_bf16 and trained != "fp32" else "fp32"


def _reward_scorer(checkpoint: CheckpointInfo, vocab: Vocab, device: torch.device) -> RowScorer | None:
    """Returns what scores rows of a reward model; None for other models."""
    if not isinstance(checkpoint.recipe.train.objective, RewardModelling):
        return None
    from pretrain.objectives.reward_scorer import RewardScorer, load_reward_model

    return RewardScorer(load_reward_model(checkpoint).to(device), vocab)

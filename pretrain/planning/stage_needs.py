"""Predicts what a stage needs beside training itself: frozen models, a critic, the cache of answers that are drawn.

Free of torch, like `pretrain/planning/memory.py`. N parameters, L layers, K key and value heads of width E.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from configs.schema.model import Model
from configs.schema.objectives import Preference, ProximalPolicy, Reinforcement
from configs.schema.recipe import Recipe
from pretrain.planning.memory import Memory, Setup
from pretrain.planning.step_time import Hardware
from pretrain.sizes.flops import count_parameters

ROWS = 64  # answers decoded at a time on a rank where the recipe leaves it open
_TRAINED = ("weights", "gradients", "optimizer")
_LAYER_SECONDS = {True: 0.3e-3, False: 0.25e-3}  # of a decode step beside its products: on a CPU, on a GPU


@dataclass(frozen=True)
class StageNeeds:
    """Bytes per rank beside the trained model, and seconds of an optimizer step beside its training."""

    frozen: dict[str, float]  # name of a model -> bytes
    critic: float
    cache_per_row: float  # bytes of a row's keys and values at its longest
    rows: int  # answers decoded at a time
    answers: int  # per rollout, over all ranks
    drawn_tokens: int  # most per optimizer step, over all ranks
    seconds: float  # of drawing them

    @property
    def cache(self) -> float:
        """Bytes of the cache."""
        return self.rows * self.cache_per_row

    def peak(self, training: Memory) -> float:
        """Bytes at the moment that needs most: a step of training, or a rollout, when no activations are there."""
        states = sum(training.parts[name] for name in _TRAINED) + training.parts["overhead"]
        beside = sum(self.frozen.values()) + self.critic
        return max(training.total + beside, states + beside + self.cache)

    def most_rows(self, training: Memory, limit: float) -> int:
        """The largest number of rows whose cache fits beside the models; 0: not one."""
        states = sum(training.parts[name] for name in _TRAINED) + training.parts["overhead"]
        free = limit - states - sum(self.frozen.values()) - self.critic
        return max(0, int(free // self.cache_per_row)) if self.cache_per_row else 0

    def as_json(self, training: Memory, limit: float) -> dict[str, Any]:
        """All figures, for `replica plan --json`."""
        return {
            "frozen_bytes": self.frozen,
            "critic_bytes": self.critic,
            "cache_bytes": self.cache,
            "cache_bytes_per_row": self.cache_per_row,
            "rollout_rows": self.rows,
            "rollout_rows_that_fit": self.most_rows(training, limit),
            "answers_per_rollout": self.answers,
            "drawn_tokens_per_step": self.drawn_tokens,
            "rollout_seconds_per_step": self.seconds,
            "peak_bytes": self.peak(training),
        }


def stage_needs(recipe: Recipe, rows: int, setup: Setup, training: Memory, hardware: Hardware) -> StageNeeds | None:
    """Predicts for a recipe with an objective of a stage; None for others.

    Args:
        recipe: of the stage.
        rows: of the embedding.
        setup: how it is trained.
        training: what training alone needs.
        hardware: the devices.
    """
    objective, counted = recipe.train.objective, count_parameters(recipe.model, rows).total
    copy = float(setup.element * counted)
    if isinstance(objective, Preference):
        return StageNeeds({}, 0.0, 0.0, 0, 0, 0, 0.0)  # the reference's log-probabilities are stored beside the data
    if not isinstance(objective, Reinforcement):
        return None
    rollout, frozen = objective.rollout, dict[str, float]()
    if objective.kl.compares:
        frozen["reference"] = copy
    if objective.rewards.model is not None:
        frozen["reward model"] = copy
    if setup.real_stage == 3:
        frozen["copy to generate with"] = copy
    separate = isinstance(objective, ProximalPolicy) and objective.critic == "separate"
    critic = sum(training.parts[name] for name in (*_TRAINED, "activations")) if separate else 0.0
    answers = rollout.prompts * rollout.samples
    at_once = min(rollout.rows or ROWS, -(-answers // setup.ranks))
    drawn = answers * rollout.max_new_tokens // rollout.updates
    seconds = _drawing_seconds(recipe.model, counted, at_once, answers, setup, hardware) / rollout.updates
    # A prompt and its answer together are never longer than the context.
    per_row = float(cache_bytes(recipe.model, setup.element) * recipe.model.context_length)
    return StageNeeds(frozen, critic, per_row, at_once, answers, drawn, seconds * rollout.max_new_tokens)


def cache_bytes(model: Model, element: int) -> int:
    """Bytes of keys and values of one token: 2 L K E numbers."""
    return 2 * model.num_layers * model.kv_heads * model.head_width * element


def _drawing_seconds(model: Model, counted: int, at_once: int, answers: int, setup: Setup, hardware: Hardware) -> float:
    """Seconds for one token of every answer of a rollout: products, or reading the weights and the caches."""
    device = hardware.device
    blocks = -(-answers // (at_once * setup.ranks))
    products = 2.0 * counted * at_once / (device.peak(setup.precision) * hardware.mfu[0])
    cache = at_once * cache_bytes(model, setup.element) * model.context_length / 2
    reading = (setup.element * counted + cache) / device.bandwidth
    return blocks * (max(products, reading) + model.num_layers * _LAYER_SECONDS[device.cpu])

"""Defines what scores the model while it trains: parts of an evaluation, of which this package knows no more.

The evaluation stands above training, and imports it. So training takes a maker by the name of its module, which
`pretrain.train` looks up: the same way under every launcher, and nothing is loaded where a recipe asks for nothing.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np
import torch

from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest
from pretrain.engine.engine import Engine

_MAKER = "eval.in_training.evaluator"  # the module whose `make_evaluator` is a `MakeEvaluator`


@dataclass(frozen=True)
class StepScores:
    """What an evaluation measured of the weights of a step, the same on all ranks."""

    values: Mapping[str, float]  # finite; curve -> value
    more_is_better: Mapping[str, bool] = field(default_factory=dict)  # of curves whose direction is known
    texts: Mapping[str, str] = field(default_factory=dict)  # title -> generated text


class Evaluator(Protocol):
    """Scores the present weights. It raises nothing that a score may be the cause of: that is said, and counted."""

    def __call__(self, engine: Engine, step: int, stop: Callable[[], int]) -> StepScores:
        """Scores the weights after `step` updates; every rank must call it.

        `stop` gives the signal that this rank got, or 0: then scoring ends early.
        """

    def close(self) -> None:
        """Flushes and closes what is open."""


class MakeEvaluator(Protocol):
    """Makes the evaluator of a session; `start_step`: updates made before it."""

    def __call__(self, recipe: Recipe, data: DataManifest, engine: Engine, start_step: int) -> Evaluator: ...


def find_evaluator(recipe: Recipe) -> MakeEvaluator | None:
    """What makes the evaluator of a recipe; None for one that scores no part of its evaluation during training."""
    if not recipe.train.validation.evaluation.parts:
        return None
    return cast(MakeEvaluator, importlib.import_module(_MAKER).make_evaluator)


@contextmanager
def undisturbed(engine: Engine) -> Iterator[None]:
    """Training goes on behind it as if nothing had happened inside: random numbers and modes are as before."""
    training, device = engine.module.training, engine.device
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)
        engine.module.train(training)

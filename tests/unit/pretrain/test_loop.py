"""What the loop does for an objective that makes its batches: experience, boundaries, statistics, its state."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.schema.recipe import Recipe
from pretrain import session
from pretrain.batches.source import Batch
from pretrain.checkpoint.manifest import OBJECTIVE_STATE, read_info, step_directories
from pretrain.engine.engine import Engine
from pretrain.engine.loss_module import LossModule
from pretrain.objectives.language_modelling import Pretraining
from pretrain.objectives.objective import NothingToLearn, Objective
from pretrain.phases import Phase
from pretrain.signals import StoppedEarly
from tests.parts.training_run import metric_lines, prepare_data, tiny_recipe

STEPS, ROUND = 12, 4  # what is read serves so many updates


class Weighed(LossModule):
    """Nats, each row times a number of its own."""

    stat_names = ("nats",)

    def loss(
        self, tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None, **columns: Tensor
    ) -> Tensor:
        nats = self.nats(tokens, targets, weights * columns["factor"][:, None], positions)
        return torch.stack([nats, nats])


class InRounds(Pretraining):
    """Adds a column, and may be saved between rounds alone."""

    rolls_out = True

    def __init__(self, recipe: Recipe, at_step: Callable[[int], None]) -> None:
        super().__init__(recipe, lambda model, chunk: Weighed(model, chunk), codes=False)
        self._at_step = at_step

    def experience(self, engine: Engine, read: Any, step: int) -> Batch:
        self._at_step(step)
        self.state["read"] = [*self.state.get("read", []), step]
        rows = len(read.tokens)
        made = {"count": float(rows), "lengths": (20,) * rows, "statistics": {"reward": float(step)}}
        return replace(read, columns={"factor": torch.full((rows,), 0.5)}, **made)

    def made_up(self, batch: Batch) -> Batch:
        return replace(batch, columns={"factor": torch.ones(len(batch.tokens))})

    def boundary(self, done: int) -> bool:
        return done % ROUND == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def train(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Trains for `STEPS` steps, or goes on; `at_step(step)` is called before each. Returns the run's directory."""

    def run(at_step: Callable[[int], None] = lambda step: None, every: int = 3) -> Path:
        def chosen(recipe: Recipe) -> Objective:
            return InRounds(recipe, at_step)

        monkeypatch.setattr(session, "make_objective", chosen)
        recipe = tiny_recipe(tmp_path, data, steps=STEPS, checkpoint={"every": every, "keep": 9})
        session.run(recipe)
        return recipe.run_directory

    return run


def saved(run: Path) -> list[int]:
    return sorted(read_info(directory).step for directory in step_directories(run))


def test_checkpoints_wait_for_a_boundary(train: Callable[..., Path]) -> None:
    run = train()
    assert saved(run) == [4, 8, 12], "due after 3, 6, 9 and 12 updates"
    state = read_info(step_directories(run)[0]).state[OBJECTIVE_STATE]
    assert state == {"read": list(range(STEPS))}


def test_statistics_are_logged_and_tokens_counted_by_rows(train: Callable[..., Path]) -> None:
    run = train()
    assert metric_lines(run, "train/reward") == {step + 1: float(step) for step in range(STEPS)}
    losses = metric_lines(run, "train/loss")
    assert losses == metric_lines(run, "train/nats") and losses[1] == pytest.approx(0.5 * 20 * 5.7, rel=0.1)
    assert metric_lines(run, "tokens")[1] == 8 * 20, "whatever the loss is a mean over"
    assert not metric_lines(run, "train/code_length_bits") and not metric_lines(run, "train/code_bits_per_byte")


def test_a_signal_waits_for_a_boundary_and_training_goes_on_from_there(train: Callable[..., Path]) -> None:
    """With the objective's own state, as if nothing had happened."""

    def stop(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedEarly):
        train(stop, every=100)
    made: list[int] = []
    run = train(made.append)
    assert made == list(range(8, STEPS)) and saved(run) == [8, 12]
    assert read_info(step_directories(run)[0]).state[OBJECTIVE_STATE] == {"read": list(range(STEPS))}


def test_an_objective_ends_training_that_learns_nothing(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def check(_: Objective, step: int, loss: float, statistics: dict[str, float]) -> None:
        assert list(statistics) == ["nats", "reward"]
        if statistics["reward"] >= 5:
            raise NothingToLearn("all rewards have been equal for 20 steps; look at the prompts")

    monkeypatch.setattr(InRounds, "check", check)
    with pytest.raises(ValueError, match="all rewards have been equal"):
        train()
    assert max(metric_lines(tmp_path / "run", "train/loss")) == 5 and saved(tmp_path / "run") == [4]


def test_watchers_are_told_of_a_rollout(train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    phases: list[Phase] = []
    enter = session.CurrentPhase.enter

    def noting(self: Any, phase: Phase, step: int | None = None) -> None:
        phases.append(phase)
        enter(self, phase, step)

    monkeypatch.setattr(session.CurrentPhase, "enter", noting)
    train()
    order = [Phase.WAITING_FOR_DATA, Phase.ROLLOUT, Phase.SUM_TARGETS]
    assert [phase for phase in phases if phase in order] == order * STEPS

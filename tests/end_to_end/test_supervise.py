"""`replica train --supervise`: restarts after killed processes, on other numbers of ranks, until the end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from configs.common.exit_codes import STOPPED_EARLY, USER_ERROR
from configs.schema.recipe import Recipe, save
from configs.schema.train import Watch
from launch.processes import supervise as supervision
from launch.processes import training
from launch.processes.supervise import ranks_left, supervise
from launch.processes.training import TrainingFailed
from pretrain.phases import Phase
from pretrain.reliability.rank_heartbeat import LOST_RANK, RankHeartbeat
from pretrain.train import train
from tests.parts.rank_processes import last_step, launchers, ranks, wait_until
from tests.parts.training_run import metric_lines, prepare_data, tiny_recipe

STEPS = 120
SETTINGS = {"steps": STEPS, "checkpoint": {"every": 15}, "validation": {"every": 10_000}}


@pytest.mark.slow
def test_two_ranks_then_one_then_two_again_end_with_the_losses_of_an_unbroken_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The launcher dies while a GPU fell out; a rank dies when it is back."""
    data = prepare_data(tmp_path / "data")
    (tmp_path / "unbroken").mkdir()
    unbroken = tiny_recipe(tmp_path / "unbroken", data, **SETTINGS)
    assert train(unbroken)
    recipe = tiny_recipe(tmp_path, data, **SETTINGS, ranks=2)
    run = recipe.run_directory
    save(recipe, run)
    gpus = iter((1, 2))
    monkeypatch.setattr(supervision, "_count_gpus", lambda: next(gpus))
    monkeypatch.setattr(supervision, "count_ranks", lambda recipe: 2)
    seen: list[int] = []

    def wreck() -> None:
        wait_until(lambda: last_step(run) >= 32)
        seen.append(len(ranks()))
        launchers()[0].kill()
        wait_until(lambda: last_step(run) >= 62 and ranks())
        seen.append(len(ranks()))
        ranks()[-1].kill()
        wait_until(lambda: last_step(run) >= 92 and ranks())
        seen.append(len(ranks()))

    wrecker = threading.Thread(target=wreck, daemon=True)
    wrecker.start()
    newest = supervise(recipe, restarts=1, pause=0.1)
    wrecker.join(10)
    assert seen == [2, 1, 2]
    assert newest.name == f"step_{STEPS:08d}"
    assert not ranks() and not launchers()
    losses = metric_lines(run, "train/loss")
    assert losses == pytest.approx(metric_lines(unbroken.run_directory, "train/loss"), abs=1e-5)
    said = capfd.readouterr().err
    assert "in 0.1 s on 1 ranks" in said and "in 0.1 s on 2 ranks" in said
    assert said.count("signal 9") == 2


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return tiny_recipe(tmp_path, tmp_path, global_batch_size=12, ranks=8)


def scripted(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, attempts: list[tuple[int, int]]
) -> Callable[[], tuple[int, list[int]]]:
    """Training replaced by attempts that end with (exit code, newest checkpoint's step); 20 is the last step."""
    step, used, left = 0, list[int](), list(attempts)

    def attempt(recipe: Recipe, ranks: int) -> int:
        nonlocal step
        code, step = left.pop(0)
        used.append(ranks)
        return code

    monkeypatch.setattr(supervision, "count_ranks", lambda recipe: 6)
    monkeypatch.setattr(supervision, "_count_gpus", lambda: 5)
    monkeypatch.setattr(supervision, "ranks_exit_code", attempt)
    monkeypatch.setattr(supervision, "is_finished", lambda recipe: step == 20)
    monkeypatch.setattr(
        supervision, "newest", lambda run: SimpleNamespace(step=step, directory=Path(f"step_{step:08d}"))
    )
    return lambda: (len(left), used)


def test_progress_makes_the_restarts_count_anew(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = [(247, 0), (70, 0), (75, 5), (247, 5), (0, 5), (0, 20)]
    outcome = scripted(monkeypatch, recipe, attempts)
    assert supervise(recipe, restarts=2, pause=0).name == "step_00000020"
    assert outcome() == (0, [6, 4, 4, 4, 4, 4])


def test_restarts_without_progress_are_bounded(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = scripted(monkeypatch, recipe, [(247, 5)] * 9)
    with pytest.raises(TrainingFailed, match=r"signal 9\), newest checkpoint at step 5; 2 restarts made no newer"):
        supervise(recipe, restarts=2, pause=0)
    assert outcome()[0] == 9 - 4  # the first one made progress


def test_what_the_user_must_fix_is_not_tried_again(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = scripted(monkeypatch, recipe, [(USER_ERROR, 5), (0, 20)])
    with pytest.raises(TrainingFailed, match="see its error message above"):
        supervise(recipe, restarts=2, pause=0)
    assert outcome()[0] == 1


def test_success_without_the_last_checkpoint_is_none(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(monkeypatch, recipe, [(0, 7), (STOPPED_EARLY, 9), (LOST_RANK, 11), (247, 20)])
    supervise(recipe, restarts=0, pause=0)  # and a failure with it is success
    said = capsys.readouterr().err
    assert "the launcher reported success, but the last step was not made" in said
    assert "stopped by a signal after saving" in said
    assert "exit code 76 (another rank is gone or stuck; the message above names it)" in said


@pytest.mark.parametrize(
    ("phase", "age", "code"), [(Phase.ENDED, 0.0, LOST_RANK), (Phase.ENDED, 60.0, 3), (Phase.FORWARD, 0.0, 3)]
)
def test_ranks_that_do_not_answer_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: Phase, age: float, code: int
) -> None:
    """Once a rank of this start, and not of an earlier one, has given up."""
    monkeypatch.setattr(training, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(training, "_LOST_GRACE_SECONDS", 0.1)
    heartbeat = RankHeartbeat(tmp_path, Watch(), rank=0, ranks=2)
    heartbeat.phases.enter(phase)
    began = time.time() + age
    heartbeat._write()
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1.5); raise SystemExit(3)"
    assert training._wait(training._spawn([sys.executable, "-c", script]), tmp_path, began) == code


@pytest.mark.parametrize(("devices", "expected"), [(8, 6), (6, 6), (5, 4), (3, 3), (1, 1), (0, 6)])
def test_the_ranks_that_are_left_divide_the_batch(recipe: Recipe, devices: int, expected: int) -> None:
    assert ranks_left(recipe, devices) == expected

"""Long runs stay lean, start quickly again, and end with the right code under `replica train`."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from launch.processes.training import train_here
from pretrain.reliability.rank_heartbeat import read_beats
from pretrain.signals import StoppedEarly
from tests.parts.rank_processes import last_step
from tests.parts.training_run import ROOT, prepare_data, start_training, tiny_recipe, write_recipe

pytestmark = pytest.mark.slow
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_data(tmp_path_factory.mktemp("data"))


def measure(process: psutil.Process) -> tuple[int, int, int]:
    return process.memory_info().rss, process.num_fds(), process.num_threads()


def wait_for_step(run: Path, pid: int, step: int, process: subprocess.Popen[str]) -> None:
    while not any(beat.pid == pid and beat.step >= step for beat in read_beats(run).values()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize("steps", [pytest.param(2000, marks=pytest.mark.chaos), 300])
def test_memory_open_files_and_threads_stay_flat(tmp_path: Path, data: Path, steps: int) -> None:
    """From the first hundred steps on, with logs, validations, checkpoints and comparisons of every kind."""
    often = {"validation": {"every": 50}, "watch": {"compare_every": 10, "heartbeat_seconds": 0.1}}
    recipe = write_recipe(tmp_path / "recipe.yaml", data, steps=steps + 200, checkpoint={"every": 20}, **often)
    process = start_training(recipe, "train.tensorboard=true")
    try:
        wait_for_step(tmp_path / "run", process.pid, 100, process)
        watched, seen = psutil.Process(process.pid), []
        for step in range(100, steps + 1, 20):
            wait_for_step(tmp_path / "run", process.pid, step, process)
            seen.append(measure(watched))
    finally:
        process.kill()
        process.communicate(timeout=30)
    third = len(seen) // 3
    early, late = ([max(values) for values in zip(*part, strict=True)] for part in (seen[:third], seen[-third:]))
    assert late[0] - early[0] < 12 * MEGABYTE, f"{(late[0] - early[0]) / MEGABYTE:.1f} MB more"
    assert late[1] <= early[1] + 2 and late[2] <= early[2] + 2, (early, late)


def test_replica_train_keeps_the_signal_in_its_exit_code_and_says_where_a_restart_spends_its_time(
    tmp_path: Path, data: Path
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", data, steps=50_000, checkpoint={"every": 5})
    command = [sys.executable, "-m", "launch.cli", "train", str(recipe)]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        wait_for_step(tmp_path / "run", process.pid, 7, process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate(timeout=30)
    assert process.returncode == 143, errors
    told = re.search(r"ready after ([\d.]+) s: (.*)", errors)
    assert told is not None and "engine" in told[2] and "newest checkpoint" in told[2]
    assert "Traceback" not in errors


@pytest.mark.parametrize("order", [signal.SIGUSR1, pytest.param(signal.SIGTERM, marks=pytest.mark.chaos)])
def test_a_signal_before_the_first_step_ends_replica_train_in_order(
    tmp_path: Path, data: Path, order: signal.Signals
) -> None:
    """There is nothing to save; the lock is let go of, and the same command may be given at once.

    Between the signal and the first step lies a second or two. Where this test comes too late, one step is made and
    saved.
    """
    recipe = write_recipe(tmp_path / "recipe.yaml", data, steps=50_000)
    command = [sys.executable, "-m", "launch.cli", "train", str(recipe)]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        while not (tmp_path / "run" / "recipe.yaml").exists():  # then the directory is locked
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(order)
        _, errors = process.communicate(timeout=200)  # what it is at, imports for instance, comes to its end first
    finally:
        process.kill()
        process.communicate(timeout=30)
    assert process.returncode == {signal.SIGUSR1: 75, signal.SIGTERM: 143}[order], errors
    assert "Traceback" not in errors
    step = last_step(tmp_path / "run")
    assert step == 0 or (step == 1 and (tmp_path / "run" / "checkpoints" / "step_00000001").is_dir()), errors


@pytest.mark.chaos
@pytest.mark.parametrize(("order", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_to_replica_train_with_two_ranks(tmp_path: Path, data: Path, order: signal.Signals, code: int) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", data, steps=50_000)
    command = [sys.executable, "-m", "launch.cli", "train", str(recipe), "--ranks", "2"]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    run = tmp_path / "run"
    try:
        while last_step(run) < 5:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(order)
        _, errors = process.communicate(timeout=100)
    finally:
        process.kill()
        process.communicate(timeout=30)
    assert process.returncode == code, errors
    assert (run / "checkpoints" / f"step_{last_step(run):08d}").is_dir(), errors


@pytest.mark.parametrize(
    ("order", "end"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, "143"), (signal.SIGUSR1, "75")]
)
def test_each_signal_has_its_own_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: Path, order: int, end: type[BaseException] | str
) -> None:
    def stopped(_recipe: object) -> None:
        raise StoppedEarly(order)

    monkeypatch.setattr("pretrain.train.train", stopped)
    with pytest.raises(SystemExit if isinstance(end, str) else end, match=end if isinstance(end, str) else ""):
        train_here(tiny_recipe(tmp_path, data))

"""Two real processes over gloo: one is stopped, killed or asked to save; and what a slice that is too short does."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from configs.common.exit_codes import STOPPED_EARLY
from pretrain.reliability.rank_heartbeat import LOST_RANK, read_beats
from tests.parts.rank_processes import last_step
from tests.parts.training_run import prepare_data, start_training, write_recipe

pytestmark = pytest.mark.slow
TIMEOUT = 6.0
SETTINGS = {"steps": 50_000, "validation": {"every": 100_000}, "checkpoint": {"every": 10_000}}
WATCH = {"timeout_seconds": TIMEOUT, "heartbeat_seconds": 0.5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_data(tmp_path_factory.mktemp("data"))


def start_two(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = []
    for rank in "01":
        for name, value in {**place, "RANK": rank, "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, value)
        processes.append(start_training(recipe))
    return processes


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def reached(run: Path, pid: int, step: int) -> bool:
    return any(beat.pid == pid and beat.step >= step for beat in read_beats(run).values())


@pytest.mark.parametrize("order", [signal.SIGSTOP, pytest.param(signal.SIGKILL, marks=pytest.mark.chaos)])
def test_a_rank_that_is_stopped_or_killed_ends_the_run_and_is_named(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, order: signal.Signals
) -> None:
    stage = 1 if order == signal.SIGSTOP else 2
    recipe = write_recipe(tmp_path / "recipe.yaml", data, **SETTINGS, watch=WATCH, zero={"stage": stage})
    processes = start_two(recipe, monkeypatch)
    run = tmp_path / "run"
    try:
        wait_for(lambda: last_step(run) >= 5)
        processes[1].send_signal(order)
        began = time.monotonic()
        _, errors = processes[0].communicate(timeout=60)
        took = time.monotonic() - began
        assert processes[0].returncode == LOST_RANK == 76, errors[-3000:]
        assert took < (TIMEOUT if order == signal.SIGSTOP else 0) + 5
        (message,) = [line for line in errors.splitlines() if line.startswith("error: ")]
        found = re.search(r"rank 0 of 2 in step (\d+), .*rank 1 \(.*, pid (\d+)\) is silent, last heard of in", message)
        assert found is not None and int(found[1]) >= 5 and int(found[2]) == processes[1].pid, message
        if order == signal.SIGSTOP:
            stacks = (run / "ranks" / "rank_00000.stacks").read_text()
            assert "engine.py" in stacks and "step" in stacks.splitlines()[0]
    finally:
        for process in processes:
            process.kill()
            process.communicate(timeout=30)


def test_usr1_on_one_rank_saves_on_all(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", data, **SETTINGS)
    processes, run = start_two(recipe, monkeypatch), tmp_path / "run"
    try:
        wait_for(lambda: last_step(run) >= 5)
        processes[1].send_signal(signal.SIGUSR2)  # stacks, and on it goes
        processes[1].send_signal(signal.SIGUSR1)
        assert [process.wait(timeout=30) for process in processes] == [STOPPED_EARLY, STOPPED_EARLY]
        assert (run / "checkpoints" / f"step_{last_step(run):08d}").is_dir()
        assert json.loads((run / "launches.json").read_text())[-1]["how"] == "SIGUSR1"
        assert "thread" in (run / "ranks" / "rank_00001.stacks").read_text().lower()
    finally:
        for process in processes:
            process.kill()
            process.communicate(timeout=30)


def test_the_second_signal_stops_at_once(tmp_path: Path) -> None:
    """Also where the first one cannot be answered: here nobody ever asks for it."""
    code = "import time; from pretrain.signals import stop_requests\n"
    code += "with stop_requests():\n print(1, flush=True)\n time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    for pause in (0.1, 2.1):  # the second comes as one order with the first, the third does not
        process.send_signal(signal.SIGTERM)
        time.sleep(pause)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGTERM and "stopped at once" in errors


@pytest.mark.chaos
def test_launches_that_end_before_a_checkpoint_get_nearer_to_one(tmp_path: Path, data: Path) -> None:
    """Killed at step 15 to 20 each time, with checkpoints asked for every 10,000: it gets there all the same."""
    recipe, run = write_recipe(tmp_path / "recipe.yaml", data, **SETTINGS), tmp_path / "run"
    start = 0
    for _ in range(3):
        process = start_training(recipe)
        try:
            wait_for(partial(reached, run, process.pid, start + 15))
        finally:
            os.kill(process.pid, signal.SIGKILL)
            _, errors = process.communicate(timeout=30)
        newest = sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*")) or [0]
        if newest[-1] > start:
            break
    assert newest[-1] > start, (run / "launches.json").read_text()
    assert re.search(r"checkpoints every \d+ steps instead of 10,000: the slice before began at step 0", errors)

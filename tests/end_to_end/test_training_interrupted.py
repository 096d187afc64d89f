"""Training as a user starts it: killed, asked to stop, run again, and given what it cannot use."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.common.exit_codes import STOPPED_EARLY
from pretrain.checkpoint.manifest import newest
from pretrain.train import main
from tests.parts.rank_processes import last_step
from tests.parts.training_run import metric_lines, prepare_data, start_training, train_to_end, write_recipe

pytestmark = pytest.mark.slow
STEPS = 240
SETTINGS = {"steps": STEPS, "checkpoint": {"every": 20}, "validation": {"every": 100}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The run directory of an uninterrupted training, with dropout, so that random state matters too."""
    recipe = write_recipe(tmp_path_factory.mktemp("unbroken") / "recipe.yaml", data, **SETTINGS)
    done = train_to_end(recipe, "model.dropout=0.1")
    assert done.returncode == 0, done.stderr
    return recipe.parent / "run"


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if last_step(run) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached: {process.communicate(timeout=10)}")


def test_killed_at_random_moments_then_resumed_is_bitwise_the_same(tmp_path: Path, data: Path, unbroken: Path) -> None:
    seed = random.randrange(10**6)
    moments = random.Random(seed)
    recipe = write_recipe(tmp_path / "recipe.yaml", data, **SETTINGS)
    for fraction in (0.3, 0.7):
        process = start_training(recipe, "model.dropout=0.1")
        wait_for_step(tmp_path / "run", int(STEPS * fraction), process)
        time.sleep(moments.random() * 0.3)  # anywhere in a step, or in the middle of writing a checkpoint
        process.kill()
        process.communicate(timeout=30)
    done = train_to_end(recipe, "model.dropout=0.1")
    assert done.returncode == 0, done.stderr
    for key in ("train/loss", "train/grad_norm", "train/code_length_bits", "val/loss"):
        assert metric_lines(tmp_path / "run", key) == metric_lines(unbroken, key), f"moments seed {seed}, {key}"
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_sigterm_saves_says_so_and_goes_on_and_a_finished_run_returns_at_once(tmp_path: Path, data: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", data, **{**SETTINGS, "steps": 100, "checkpoint": {"every": 10_000}})
    process = start_training(recipe)
    wait_for_step(tmp_path / "run", 5, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == STOPPED_EARLY == 75
    assert "Traceback" not in errors
    saved = newest(tmp_path / "run")
    assert saved is not None and 5 <= saved.step < 100
    launcher = (str(Path(sys.executable).parent / "deepspeed"), "--num_accelerators", "2", "--master_port", free_port())
    done = train_to_end(recipe, "train.zero.stage=2", launcher=launcher)  # and on under the launcher, on two ranks
    assert done.returncode == 0, done.stderr
    assert sorted(metric_lines(tmp_path / "run", "train/loss")) == list(range(1, 101))
    code = "import sys; from pretrain.train import main; sys.exit(main(sys.argv[1:]) or 'torch' in sys.modules)"
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code, "--recipe", str(recipe)], check=True, timeout=60)
    assert time.monotonic() - start < 10


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def said(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What training says about a mistake: exit code 2, one `error:` line, no traceback."""
    assert main(arguments) == 2
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    return errors[errors.index("error: ") :]


def test_mistakes_get_one_clear_message(
    tmp_path: Path, data: Path, unbroken: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = ["--recipe", str(write_recipe(tmp_path / "recipe.yaml", data))]
    old_run = [*recipe, "--out", str(unbroken), "train.steps=500"]
    assert "run `replica data RECIPE` first" in said(capfd, *recipe, f"data.directory={tmp_path}")
    assert "no such recipe" in said(capfd, "--recipe", "nowhere.yaml")
    assert "train.ranks asks for 2 processes on this machine, but 1 were started" in said(
        capfd, *recipe, "train.ranks=2"
    )
    assert "model.hidden_size = 32, but now it is 64" in said(
        capfd, *old_run, "model.dropout=0.1", "model.hidden_size=64"
    )
    assert "model.dropout = 0.1, but now it is 0.0" in said(capfd, *old_run)
    other = prepare_data(tmp_path / "other", {"other": 9_000})
    assert "the data's fingerprint" in said(capfd, *old_run, "model.dropout=0.1", f"data.directory={other}")
    clash = said(capfd, *recipe, "deepspeed={gradient_clipping: 0.5}")
    assert "deepspeed.gradient_clipping: 0.5 clashes with 1.0" in clash
    assert "fp16 needs a GPU" in said(capfd, *recipe, "train.precision=fp16")
    if "wandb" not in sys.modules:
        assert "pip install wandb" in said(capfd, *recipe, "train.wandb={project: p}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in place.items():
            monkeypatch.setenv(name, value)
        assert f"port {port} on 127.0.0.1 is in use" in said(capfd, *recipe)


def test_a_loss_that_is_no_number_stops_before_the_update(
    tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", data, checkpoint={"every": 1}, optimizer={"lr": 1e30})
    assert "Lower train.optimizer.lr" in said(capfd, "--recipe", str(recipe))
    losses = metric_lines(tmp_path / "run", "train/loss")
    assert all(value < 1e30 for value in losses.values()) and len(losses) < 20


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, data: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", data)
    # A limit on file size stands in for the full disk: the weights do not fit.
    command = f"ulimit -f 60; exec {sys.executable} -m pretrain.train --recipe {recipe}"
    ignore = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", f"trap '' XFSZ; {command}"], capture_output=True, text=True, env=ignore, timeout=120, check=False
    )
    assert done.returncode == 2 and "File too large" in done.stderr and "Traceback" not in done.stderr
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []

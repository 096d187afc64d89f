"""`launch/ray.sh train` and `eval` on one and on two machines (network namespaces), which lose all that can be lost."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_hosts import processes
from test_two_nodes import SCRIPT, SETTINGS, Machines, saved, train, two_machines

from eval.results import load_results
from eval.suite import evaluate
from tests.parts.rank_processes import SCRIPT as RANK
from tests.parts.rank_processes import last_step, wait_until
from tests.parts.training_run import metric_lines, prepare_data, write_recipe


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    """Two machines; Ray runs on the first, with one CPU."""
    directory = Path(f"/tmp/ray-u{tmp_path.name[-12:]}")  # sockets lie in it: short
    with two_machines(directory) as made:
        made.start(0, cpus=1)
        yield made
    shutil.rmtree(directory, ignore_errors=True)


def makes_steps(process: subprocess.Popen[str], run: Path, steps: int) -> None:
    """Waits until so many more steps are logged than before."""
    before = last_step(run)
    wait_until(lambda: last_step(run) >= before + steps or process.poll() is not None)
    assert process.poll() is None, process.communicate()


@pytest.fixture
def two(machines: Machines) -> Machines:
    """Ray runs on both."""
    machines.start(1, cpus=1)
    return machines


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_signal_a_dying_node_and_to_the_end(two: Machines, tmp_path: Path) -> None:
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    data = prepare_data(tmp_path / "data")
    write_recipe(recipe, data, **SETTINGS, steps=50_000)
    said = (process := train(two, recipe, "--nodes", "3")).communicate(timeout=60)
    assert process.returncode == 2, said
    assert "2 of the cluster's 2 nodes have 1 CPU, and 3 are needed" in said[1]

    process = train(two, recipe, "--nodes", "2")
    makes_steps(process, run, 15)
    assert processes(two, 0, RANK) and processes(two, 1, RANK), "a rank on each node"
    process.send_signal(signal.SIGUSR1)
    said = process.communicate(timeout=100)
    assert process.returncode == 75, said
    assert saved(run) == (last_step(run), 2), "saved at the signal"

    process = train(two, recipe, "--nodes", "2")
    makes_steps(process, run, 15)
    two.kill(1)
    wait_until(lambda: process.poll() is not None or saved(run)[1] == 1)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=100)
    assert process.returncode == 75, said
    assert "training on 2 nodes x 1 rank\n" in said[1] and "training on 1 node x 1 rank\n" in said[1]
    assert f"node {two.addresses[1]}: " in said[1], "the lost one is named"
    assert not processes(two, 0, RANK), "nobody is left"

    two.start(1, cpus=1)
    steps = last_step(run) + 20
    write_recipe(recipe, data, **SETTINGS, steps=steps)
    said = (process := train(two, recipe)).communicate(timeout=100)
    assert process.returncode == 0, said
    assert saved(run) == (steps, 2)
    assert sorted(metric_lines(run, "train/loss")) == list(range(1, steps + 1))
    evaluated_on_both(two, run, tmp_path)


def evaluated_on_both(two: Machines, run: Path, directory: Path) -> None:
    """The same launcher evaluates, on the ranks that training had: a loss of training data as one rank finds it."""
    (directory / "held.jsonl").write_text('{"text": "the sea and the old tower"}\n{"text": "bread"}\n')
    sets = f'evaluation.perplexity=[{{"name": "held", "path": "{directory / "held.jsonl"}"}}]'
    environment = ("env", "GLOO_SOCKET_IFNAME=eth0", "RAY_AUTH_MODE=token")
    words = (str(SCRIPT), "eval", str(run), sets, "--again")
    said = (process := two.command(0, *environment, *words)).communicate(timeout=200)
    assert process.returncode == 0 and "evaluating on 2 nodes x 1 rank" in said[1], said
    assert said[0].splitlines()[-1] == str(run / "results.json")
    both = load_results(run).by_name()["perplexity/held/bits_per_byte"].value
    evaluate(run, [sets], progress=False, again=True)
    assert load_results(run).by_name()["perplexity/held/bits_per_byte"].value == pytest.approx(both, rel=1e-6)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_killed_command_rank_and_controller(two: Machines, tmp_path: Path) -> None:
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    write_recipe(recipe, prepare_data(tmp_path / "data"), **SETTINGS, steps=50_000)
    process = train(two, recipe)
    makes_steps(process, run, 15)
    process.kill()
    process.communicate()
    process = train(two, recipe)  # waits until the ranks of the killed one have saved
    wait_until(lambda: saved(run)[0] == last_step(run))
    makes_steps(process, run, 15)
    processes(two, 1, RANK)[0].kill()
    makes_steps(process, run, 15)
    processes(two, 0, "TrainController.run")[0].kill()
    makes_steps(process, run, 15)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=100)
    assert process.returncode == 130, said
    assert saved(run) == (last_step(run), 2), "saved"
    assert f"node {two.addresses[1]}: its ranks ended with exit codes [-9]" in said[1]
    assert "Ray Train or its cluster is lost" in said[1]
    assert said[1].count("training on 2 nodes") == 3


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_as_a_job_that_is_stopped(two: Machines, tmp_path: Path) -> None:
    pytest.importorskip("opencensus", reason="Ray jobs need ray[default]")
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    write_recipe(recipe, prepare_data(tmp_path / "data"), **SETTINGS, steps=50_000)
    environment = ("env", "GLOO_SOCKET_IFNAME=eth0", "RAY_AUTH_MODE=token")
    process = two.command(0, *environment, str(SCRIPT), "submit", "--", *environment, str(SCRIPT), "train", str(recipe))
    makes_steps(process, run, 15)
    server = ("--address", "http://127.0.0.1:8265")
    job = re.search(r"raysubmit_\w+", two.run(0, *environment, "ray", "job", "list", *server))
    assert job is not None
    two.run(0, *environment, "ray", "job", "stop", job[0], *server)
    process.communicate(timeout=60)
    wait_until(lambda: not processes(two, 0, RANK) and not processes(two, 1, RANK), 30)
    assert saved(run) == (last_step(run), 2), "saved"

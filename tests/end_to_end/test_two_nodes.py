"""A Ray cluster of two machines, as two network namespaces: nodes die in the middle of the work."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_data_prep import make_corpus, make_recipe, shard_hashes

from configs.common.files import read_json, sha256_file
from configs.schema.recipe import load
from data_prep.stages.pipeline import prepare_inline
from pretrain.checkpoint.manifest import newest
from tests.parts.training_run import metric_lines, prepare_data, write_recipe

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "ray.sh"
SECONDS = 240
SETTINGS = {"checkpoint": {"every": 10}, "validation": {"every": 10_000}}
_MADE = itertools.count()


class Machines:
    """Two machines on one bridge; `close` ends everything in them."""

    def __init__(self, directory: Path) -> None:
        number = os.getpid() % 60000
        made = next(_MADE)  # the kernel takes devices away late: the next test's have other names
        self._directory = directory
        self._bridge = f"rb{number}-{made}"
        self.names = (f"r{number}a{made}", f"r{number}b{made}")
        self._net = f"10.{64 + number // 256 % 64}.{number % 256}"
        self.addresses = (f"{self._net}.1", f"{self._net}.2")
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "REPLICA_RAY": f"test-{number}",
            "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef",
        }
        self._environment.pop("RAY_ADDRESS", None)

    def up(self) -> None:
        """Makes the namespaces; raises `CalledProcessError` where that is not permitted."""
        _run("ip", "link", "add", self._bridge, "type", "bridge")
        _run("ip", "link", "set", self._bridge, "up")
        for name, address in zip(self.names, self.addresses, strict=True):
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", f"v{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _run("ip", "link", "set", f"v{name}", "master", self._bridge, "up")
            _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            _run("ip", "-n", name, "link", "set", "eth0", "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")

    def start(self, machine: int, cpus: int) -> None:
        """Lets a machine join; the first one is the head."""
        join = ("--temp-dir", str(self._directory)) if machine == 0 else ("--address", self.ray_address)
        address = ("--node-ip-address", self.addresses[machine], "--num-cpus", str(cpus))
        self.run(machine, str(SCRIPT), "start", *address, *join)

    @property
    def ray_address(self) -> str:
        """Where the head listens."""
        return f"{self.addresses[0]}:6379"

    def command(self, machine: int, *command: str) -> subprocess.Popen[str]:
        """Starts a command on a machine."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[machine], *command],
            cwd=ROOT, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, machine: int, *command: str) -> str:
        """Runs a command on a machine; returns its output."""
        process = self.command(machine, *command)
        out, error = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, f"{command}: {out}{error}"
        return out

    def kill(self, machine: int) -> None:
        """As if the power went."""
        found = subprocess.run(
            ["ip", "netns", "pids", self.names[machine]], capture_output=True, text=True, check=False
        )
        for pid in map(int, found.stdout.split()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def close(self) -> None:
        """Ends what runs in the machines and takes them down."""
        for machine, name in enumerate(self.names):
            self.kill(machine)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True, check=False)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@contextmanager
def two_machines(directory: Path) -> Iterator[Machines]:
    """Two machines; skips where network namespaces may not be made."""
    if shutil.which("ip") is None:
        pytest.skip("the command `ip` is not installed")
    made = Machines(directory)
    try:
        try:
            made.up()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        yield made
    finally:
        made.close()


@pytest.fixture
def machines() -> Iterator[Machines]:
    """Two machines with a place for Ray's files."""
    directory = Path(f"/tmp/ray-t{os.getpid()}")  # sockets lie in it: short
    with two_machines(directory) as made:
        yield made
    shutil.rmtree(directory, ignore_errors=True)


def recipe(directory: Path, machines: Machines | None, **data: object) -> Path:
    """Where machines are given, the work runs on their cluster."""
    corpus = directory.parent / "corpus"
    if not corpus.is_dir():
        make_corpus(corpus)
    address = machines.ray_address if machines else "local"
    return make_recipe(corpus, directory, ray_address=address, **data)


def stages_begun(run: Path) -> set[str]:
    """Stages that somebody works on."""
    return {file.parent.name for file in (run / "data").glob("*/in_progress.json")}


def busy_on(run: Path, address: str) -> bool:
    """Whether a task runs on the machine with this address."""
    for file in (run / "data" / ".notes").glob("[0-9]*"):
        try:
            if f"({address})".encode() in file.read_bytes():
                return True
        except FileNotFoundError:
            continue
    return False


@pytest.mark.slow
def test_a_node_dies(machines: Machines, tmp_path: Path) -> None:
    whole = recipe(tmp_path / "whole", None, unit_bytes=20_000)
    prepare_inline(load(whole))
    machines.start(0, cpus=1)
    machines.start(1, cpus=1)
    file = recipe(tmp_path / "here", machines, unit_bytes=20_000)
    run = tmp_path / "here" / "run"
    process = machines.command(0, sys.executable, "-m", "data_prep", "run", str(file))
    while process.poll() is None and not busy_on(run, machines.addresses[1]):
        time.sleep(0.01)
    machines.kill(1)
    error = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 0, error
    assert "the node of a worker died" in error
    assert shard_hashes(run) == shard_hashes(tmp_path / "whole" / "run")
    assert not (run / "data" / ".notes").exists()
    check_training(machines, tmp_path / "trained")
    machines.run(0, str(SCRIPT), "stop")
    found = subprocess.run(["ip", "netns", "pids", machines.names[0]], capture_output=True, text=True, check=True)
    assert not found.stdout.split()


def train(machines: Machines, recipe: Path, *more: str) -> subprocess.Popen[str]:
    options = ("GLOO_SOCKET_IFNAME=eth0", "OMP_NUM_THREADS=1", "REPLICA_GRACE=20", "bash", str(SCRIPT))
    return machines.command(
        0, "env", *options, "train", str(recipe), "--ray-address", machines.ray_address, "--pause", "1", *more
    )


def saved(run: Path) -> tuple[int, int]:
    """Step of the newest checkpoint, and how many ranks wrote it."""
    info = newest(run)
    assert info is not None
    return info.step, sum(name.startswith("weights-") for name in info.files)


def check_training(machines: Machines, directory: Path) -> None:
    """What is left of the cluster trains to the end: one node with two ranks."""
    recipe, run = directory / "recipe.yaml", directory / "run"
    data = prepare_data(directory / "data")
    said = (process := train(machines, write_recipe(recipe, data, **SETTINGS, steps=12, ranks=2))).communicate(
        timeout=200
    )
    assert process.returncode == 0, said
    assert said[0].splitlines()[0] == str(run / "checkpoints" / "step_00000012")
    assert "training on 1 node x 2 ranks" in said[1]
    assert saved(run) == (12, 2)
    assert sorted(metric_lines(run, "train/loss")) == list(range(1, 13))
    assert {path.name for path in run.iterdir()} == {
        *(".lock", ".training.lock", "recipe.yaml", "metrics.jsonl", "launches.json", "checkpoints", "ranks"),
        "numerics.json",
    }, "Ray Train leaves nothing"


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_node_dies_in_every_stage(machines: Machines, tmp_path: Path) -> None:
    """All tasks run on the second machine, which loses its power once in every stage and comes back each time."""
    questions = tmp_path / "questions.jsonl"
    settings: dict[str, object] = {
        "unit_bytes": 20_000,
        "dedup": {"exact": True, "lines": {}, "near": {}, "substrings": {}},
        "decontaminate": {"evaluation": False, "files": [str(questions)]},
    }
    whole = recipe(tmp_path / "whole", None, **settings)
    text = (tmp_path / "corpus" / "book.txt").read_text(encoding="utf-8")
    questions.write_text(json.dumps({"text": " ".join(text[5000:5400].split())}) + "\n", encoding="utf-8")
    prepare_inline(load(whole))
    stages = read_json(tmp_path / "whole" / "run" / "data" / "manifest.json")["stages"]
    machines.start(0, cpus=0)
    machines.start(1, cpus=2)
    file = recipe(tmp_path / "here", machines, **settings)
    run = tmp_path / "here" / "run"
    process = machines.command(0, sys.executable, "-m", "data_prep", "run", str(file))
    killed: list[str] = []
    while process.poll() is None:
        now = [stage for stage in stages_begun(run) if stage not in killed]
        if now and busy_on(run, machines.addresses[1]):
            machines.kill(1)
            killed += now
            machines.start(1, cpus=2)
        time.sleep(0.002)
    error = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 0, error
    assert sorted(killed) == sorted(stages)
    assert error.count("the node of a worker died") >= len(killed)
    for stage in stages[:-2]:
        assert files_of(run / "data" / stage) == files_of(tmp_path / "whole" / "run" / "data" / stage), stage
    assert shard_hashes(run) == shard_hashes(tmp_path / "whole" / "run")


def files_of(stage: Path) -> dict[str, str]:
    """SHA-256 of a stage's files."""
    return {
        file.relative_to(stage).as_posix(): sha256_file(file) for file in sorted(stage.rglob("*")) if file.is_file()
    }

"""Every command of the README's shell blocks is run, in order, in one scratch copy of the project.

Most run as they stand. A few would take minutes or need hardware; `STAND_INS` says what runs instead of each, and why.
A command that is in neither class cannot be added to the README without this test failing.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.cli import parse

ROOT = Path(__file__).resolve().parents[2]
Replica = Callable[..., subprocess.CompletedProcess[str]]
SHELL = {"|", "&&", "||", ";", "&", ">", ">>", "<"}  # words that mean something to a shell alone
TINY = "{tiny}"

# command -> (what runs instead, why)
STAND_INS: dict[str, tuple[str, str]] = {
    "make replicate": ("make -n replicate", "minutes of installing and training; make only says what it would run"),
    "make test": ("make -n test", "would run this test again; make only says what it would run"),
    "replica run configs/demo.yaml": (
        "replica show configs/demo.yaml",
        "minutes at its real size; the next command runs the same recipe, tiny",
    ),
    "replica run configs/demo.yaml --out runs/mine train.tokens=1_000_000": (
        f"replica run configs/demo.yaml --out runs/mine {TINY}",
        "a minute or two at its real size; the overrides make it seconds",
    ),
    "replica chat runs/assistant:grpo": (
        "replica chat --help",
        "needs a trained assistant; tests/unit/launch/chat converse with small ones",
    ),
    "replica serve runs/assistant:grpo --port 8000": (
        "replica serve --help",
        "serves until it is stopped; tests/unit/launch/chat ask a real server",
    ),
    "replica run configs/letters.yaml": (
        f"replica run configs/letters.yaml {TINY} data.directory=runs/mine/data",
        "minutes at its real size; tiny, and on the shards that were made before",
    ),
    "replica compress runs/letters letter.txt": (
        "replica compress runs/letters Makefile -o runs/letters/letter.replica",
        "a reader has a letter of his own; a file that is there takes its place",
    ),
    "replica run configs/gpt2-124m.yaml --num_gpus 8": (
        "replica show configs/gpt2-124m.yaml train.ranks=8",
        "needs 8 GPUs and a download; the arguments are parsed and the batch is divided over 8 ranks",
    ),
    "replica data configs/gpt2-124m.yaml": (
        "replica show configs/gpt2-124m.yaml",
        "a download of tens of gigabytes; the recipe is read",
    ),
    "replica train configs/gpt2-124m.yaml --supervise": (
        "replica show configs/gpt2-124m.yaml train.ranks=8",
        "needs GPUs and a download; test_supervise.py lets a real training restart by itself",
    ),
    "replica doctor configs/gpt2-124m.yaml": (
        "replica doctor --help",
        "its verdict is the machine's, and may be exit code 1; test_doctor.py runs it",
    ),
    "sbatch --nodes=8 --gpus-per-node=8 launch/slurm.sh configs/llama-8b.yaml": (
        "bash -n launch/slurm.sh",
        "needs a cluster; test_slurm.py submits the same script to a real Slurm of two nodes",
    ),
    "sbatch --nodes=8 launch/ray.sh run -- replica data configs/web.yaml": (
        "bash -n launch/ray.sh && replica show configs/web.yaml",
        "needs a cluster; test_ray_slurm.py submits the same script to a real Slurm of two nodes",
    ),
    "launch/ray.sh train configs/llama-8b.yaml": (
        "launch/ray.sh train --help && replica show configs/llama-8b.yaml",
        "needs a cluster of GPUs; test_ray_training.py trains with the same script on one and two nodes",
    ),
}
# run as they stand
PLAIN = re.compile(
    r"^(source \.venv/bin/activate|cp configs/|sed -i "
    r"|replica (show|plan|sample|trace|report|export|import|data \S+ --sample|tokenizer) )"
)


def shell_commands(text: str) -> list[str]:
    """The commands of all ```sh blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = (re.sub(r"\s+#.*$", "", line).strip() for block in blocks for line in block.splitlines())
    return [line for line in lines if line]


COMMANDS = shell_commands((ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what the commands touch, with the environment the tests run in."""
    directory = tmp_path / "project"
    directory.mkdir()
    for name in ("configs", "launch"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, directory / name)
    (directory / ".venv").symlink_to(sys.prefix)
    return directory


def test_every_command_is_accounted_for() -> None:
    assert len(COMMANDS) >= 10
    unknown = [command for command in COMMANDS if command not in STAND_INS and not PLAIN.match(command)]
    assert not unknown, "say in STAND_INS how these are checked"
    assert not set(STAND_INS) - set(COMMANDS), "these are no longer in the README"


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("replica ")])
def test_arguments_are_understood(command: str) -> None:
    assert parse(shlex.split(command)[1:]).command


@pytest.mark.slow
@pytest.mark.usefixtures("prepares_here")
def test_every_command_works(project: Path, tiny_overrides: list[str], replica: Replica) -> None:
    """What the shell has to do with is given to the shell; `replica` alone runs in this process, but for its first."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    by_shell = False
    for command in COMMANDS:
        if "--baseline runs/demo" in command:
            shutil.copytree(project / "runs" / "mine", project / "runs" / "demo")
        line = STAND_INS.get(command, (command, ""))[0].replace(TINY, shlex.join(tiny_overrides))
        words = shlex.split(line)
        if by_shell and words[0] == "replica" and not SHELL.intersection(words):
            done = replica(*words[1:], cwd=project, check=False)
        else:
            by_shell = by_shell or words[0] == "replica"
            done = subprocess.run(
                ["bash", "-c", line], cwd=project, env=environment, capture_output=True, text=True, check=False
            )
        assert done.returncode == 0, f"{command}\nran as: {line}\n{done.stdout}\n{done.stderr}"
        check(command, done.stdout)


def check(command: str, said: str) -> None:
    """What the reader of the README would look for."""
    expected = {
        "make replicate": "replica run configs/assistant.yaml",
        "make test": "pytest",
        "replica sample runs/mine": "It was a dark and stormy night",
        "replica trace runs/mine": "corpus-",
        "replica report": "report: ",
        "replica show configs/demo.yaml": "override train.optimizer.lr=3e-3",
        "replica run configs/gpt2-124m.yaml": "x 8 ranks",
        "replica train": "x 8 ranks",
        "replica data configs/demo.yaml --sample": "funnel.html",
        "replica tokenizer": "bytes per token",
    }
    for start, text in expected.items():
        if command.startswith(start):
            assert text in said, command

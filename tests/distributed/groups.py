"""Groups of ranks that stay: real processes over gloo which train one list of recipes after the other.

Starting a process and importing torch and DeepSpeed takes seconds, a training of these tests tenths of one. So the
tests of a session share one group of each size.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.parts.training_run import ROOT, metric_lines, prepare_data, write_recipe

TRAIN, TRAIN_CHECKED, TRAIN_FAULTY = "train_many", "train_checked", "train_faulty"  # modules beside this one


def start_ranks(count: int, command: list[str], **settings: Any) -> list[subprocess.Popen[str]]:
    """Starts the command as each of `count` ranks, with one thread; `settings` go to `Popen`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environments = [
        {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        for rank in range(count)
    ]
    return [subprocess.Popen(command, text=True, env=environment, **settings) for environment in environments]


class RankGroup:
    """Some ranks that wait for work; they end with `close`."""

    def __init__(self, count: int, directory: Path) -> None:
        """What the ranks print goes to a file in `directory`."""
        self._said = directory / f"{count}-ranks-{time.monotonic_ns()}.txt"
        with self._said.open("w", encoding="utf-8") as said:
            command = [sys.executable, "-m", "tests.distributed.serve"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": said}
            self._processes = start_ranks(count, command, cwd=ROOT, **pipes)

    def run(self, work: str, recipes: Iterable[Path], seconds: float) -> None:
        """Has all ranks do the `work` on the recipes, one after the other.

        Raises:
            AssertionError: with what they said, when a rank failed or took longer; the group is then closed.
        """
        before = self._said.stat().st_size
        order = json.dumps({"work": work, "recipes": [str(recipe) for recipe in recipes]})
        for process in self._processes:
            print(order, file=process.stdin, flush=True)
        deadline, waiting = time.monotonic() + seconds, {process.stdout: process for process in self._processes}
        while waiting:
            ready, _, _ = select.select(list(waiting), [], [], max(0.0, deadline - time.monotonic()))
            answers = [(stream.readline(), waiting.pop(stream)) for stream in ready]
            if not ready or any(answer != "done\n" for answer, _ in answers):
                self.close()
                with self._said.open(encoding="utf-8", errors="replace") as said:
                    said.seek(before)
                    raise AssertionError(f"{work}: {'a rank failed' if ready else 'too slow'}\n{said.read()[-4000:]}")

    @property
    def works(self) -> bool:
        return all(process.poll() is None for process in self._processes)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.communicate()


class RankGroups:
    """One group of each size, started when it is first needed."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._groups = directory, dict[int, RankGroup]()

    def run(self, count: int, recipes: Iterable[Path], work: str = TRAIN, seconds: float = 200) -> None:
        """See `RankGroup.run`."""
        if count not in self._groups or not self._groups[count].works:
            self._groups[count] = RankGroup(count, self._directory)
        self._groups[count].run(work, recipes, seconds)

    def close(self) -> None:
        for group in self._groups.values():
            group.close()


class Runs:
    """The runs of a test file by name; collects recipes, then trains them together."""

    def __init__(self, directory: Path, groups: RankGroups, masked: bool = False) -> None:
        """`masked`: the vocabulary has the mask token."""
        self.directory, self._groups = directory, groups
        self.data = prepare_data(directory / "data", masked=masked)
        self._waiting: dict[int, list[Path]] = {}

    def add(self, name: str, ranks: int, stage: int, offload: Iterable[str] = (), **train: Any) -> Path:
        """A name that was added before goes on in the same run directory, after it, with these settings."""
        (self.directory / name).mkdir(exist_ok=True)
        zero = {"stage": stage, **{f"offload_{part}": "cpu" for part in offload}}
        train = {"validation": {"every": 1000, "max_tokens": 512}, **train}
        known = len(list((self.directory / name).glob("*.yaml")))
        file = self.directory / name / (f"recipe-{known}.yaml" if known else "recipe.yaml")
        write_recipe(file, self.data, zero=zero, **train)
        self._waiting.setdefault(ranks, []).append(file)
        return file.parent / "run"

    def launch(self, work: str = TRAIN, seconds: float = 200) -> None:
        """All at once: ranks of one group wait for each other, and another group uses that time."""
        waiting, self._waiting = self._waiting, {}
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda ranks: self._groups.run(ranks, waiting[ranks], work, seconds), waiting))

    def values(self, name: str, key: str = "train/loss") -> dict[int, float]:
        return metric_lines(self.directory / name / "run", key)

    def checkpoint(self, name: str, step: int) -> Path:
        return self.directory / name / "run" / "checkpoints" / f"step_{step:08d}"


def differences(one: dict[int, float], other: dict[int, float], steps: range = range(1, 21)) -> list[float]:
    return [abs(one[step] - other[step]) for step in steps]

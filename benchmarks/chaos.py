"""Random faults over one training run on two ranks; the result must be what an undisturbed run gives, to the bit.

    python benchmarks/chaos.py --faults 30 --kinds kill-rank,kill-launcher,stop-rank --json chaos.json
    python benchmarks/chaos.py --rollouts --faults 10 --kinds kill-rank,kill-supervisor --steps 200 --every 10

Prints, per kind of fault, how many there were, steps made again and seconds until training was farther than before the
fault. With `--rollouts` the run is one of reinforcement learning, and every answer that it drew must be the same too.
`disk-full` mounts a small file system for the checkpoints, which takes root and Linux. Exits 1 when the weights
or the losses differ, or the run needed a person (`replica train --supervise` gave up).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import yaml

from pretrain.metrics.metrics_file import read_metrics

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 300.0


@dataclass
class Outcome:
    """One fault and what it cost."""

    kind: str
    step: int  # the last one logged when it happened
    steps_lost: int
    seconds_lost: float  # until a later step than that was logged


class Chaos:
    """One supervised run and the means to disturb it."""

    def __init__(self, recipe: Path, run: Path, chance: random.Random) -> None:
        self.run, self.chance = run, chance
        self._command = [
            *(sys.executable, "-m", "launch.cli", "train", str(recipe), "--out", str(run), "--ranks", "2"),
            *("--supervise", "--restarts", "3", "--pause", "0.5", "--trust", str(recipe.parent)),
        ]
        self._log = run.with_suffix(".log").open("ab")
        self.supervisor = self._start()
        self.persons = 0

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        return subprocess.Popen(self._command, cwd=ROOT, env=environment, stdout=self._log, stderr=self._log)

    def go_on(self) -> bool:
        """Starts the command again when it ended too early, as a person would; False when it is done."""
        code = self.supervisor.poll()
        if code is None:
            return True
        if code == 0:
            return False
        self.persons += code != -signal.SIGKILL  # we did that
        if self.persons > 5:
            raise SystemExit(f"training keeps ending; see {self._log.name}")
        time.sleep(1)
        self.supervisor = self._start()
        return True

    def step(self) -> int:
        """The last step in metrics.jsonl."""
        return max((line["step"] for line in read_metrics(self.run)), default=0)

    def processes(self, launcher: bool) -> list[psutil.Process]:
        """The node launcher, or the ranks."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.supervisor.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    words = process.cmdline()
                    is_launcher = "deepspeed.launcher.launch" in words
                    if is_launcher == launcher and any(word.endswith("pretrain/train.py") for word in words):
                        found.append(process)
        return found

    def ranks(self) -> set[int]:
        """Process numbers of the ranks."""
        return {process.pid for process in self.processes(launcher=False)}

    def lost_since(self, step: int) -> int:
        """How many steps up to this one the ranks that run now had to make again."""
        started = [process.create_time() for process in self.processes(launcher=False) if process.is_running()]
        made = [entry["step"] for entry in read_metrics(self.run) if entry["time"] > min(started, default=0)]
        return max(0, step + 1 - min(made, default=step + 1))

    def renewed(self, before: set[int]) -> bool:
        """Whether ranks run, and none of those that ran before."""
        now = self.ranks()
        return bool(now) and not now & before

    def send(self, number: signal.Signals, launcher: bool = False) -> None:
        """A signal to one of these processes, chosen at random."""
        with suppress(psutil.NoSuchProcess):
            self.chance.choice(self.processes(launcher)).send_signal(number)

    def damage(self) -> None:
        """Flips a bit of the newest checkpoint, or cuts a file of it, and kills a rank, so that it is wanted."""
        newest = sorted((self.run / "checkpoints").glob("step_*"))[-1:]
        files = [file for directory in newest for file in sorted(directory.glob("*.safetensors"))]
        if files:
            file = self.chance.choice(files)
            content = bytearray(file.read_bytes())
            content[self.chance.randrange(len(content))] ^= 1 << self.chance.randrange(8)
            file.write_bytes(content if self.chance.random() < 0.5 else content[: len(content) // 2])
        self.send(signal.SIGKILL)

    def fill_disk(self) -> None:
        """Fills the file system of the checkpoints until a save has failed."""
        failed, filler = self.failed_saves(), self.run / "checkpoints" / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(1 << 16))
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.failed_saves() == failed and self.supervisor.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        filler.unlink()

    def failed_saves(self) -> int:
        """How often the ranks said that a checkpoint could not be written."""
        return Path(self._log.name).read_bytes().count(b"could not be written to")


FAULTS: dict[str, Callable[[Chaos], object]] = {
    "kill-rank": lambda chaos: chaos.send(signal.SIGKILL),
    "kill-launcher": lambda chaos: chaos.send(signal.SIGKILL, launcher=True),
    "kill-supervisor": lambda chaos: chaos.supervisor.kill(),
    "stop-rank": lambda chaos: chaos.send(signal.SIGSTOP),
    "term-rank": lambda chaos: chaos.send(signal.SIGTERM),
    "term-launcher": lambda chaos: chaos.send(signal.SIGTERM, launcher=True),
    "damage": Chaos.damage,
    "disk-full": Chaos.fill_disk,
}


def prepare(directory: Path, steps: int, every: int, overrides: list[str]) -> Path:
    """A corpus of a few words, its shards, and a recipe of a small model."""
    chance = random.Random(1)
    words = ["the", "of", "and", "a", "to", "in", "he", "was", "that", "it", "his", "her", "with"]
    with (directory / "corpus.jsonl").open("w", encoding="utf-8") as stream:
        for _ in range(300):
            stream.write(json.dumps({"text": " ".join(chance.choices(words, k=120))}) + "\n")
    content = {
        "name": "chaos",
        "data": {
            "directory": "shards", "sources": [{"name": "words", "path": "corpus.jsonl"}],
            "tokenizer": {"kind": "byte"}, "validation_fraction": 0.1,
        },
        "model": {"num_layers": 2, "hidden_size": 64, "num_heads": 2, "context_length": 64, "dropout": 0.1},
        "train": {
            "steps": steps, "global_batch_size": 8, "precision": "fp32", "log_every": 1, "tensorboard": False,
            "checkpoint": {"every": every}, "validation": {"every": 10 * steps},
        },
    }  # fmt: skip
    recipe = directory / "chaos.yaml"
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    command = [sys.executable, "-m", "data_prep", "run", str(recipe), "--out", str(directory / "data")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    if overrides:
        from configs.schema.recipe import dump, load

        recipe = directory / "overridden.yaml"
        recipe.write_text(dump(load(directory / "chaos.yaml", overrides)), encoding="utf-8")
    return recipe


def as_rollouts(recipe: Path, steps: int, every: int) -> Path:
    """Prompts in place of the corpus, and a recipe of reinforcement learning: two steps a rollout, an uneven reward."""
    directory = recipe.parent
    chance = random.Random(1)
    with (directory / "prompts.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(200):
            row = {"question": f"{number} {chance.randrange(1000)}", "answer": f"#### {number}"}
            stream.write(json.dumps(row) + "\n")
    code = "def uneven(text, reference):\n    return sum(map(ord, text)) % 7 / 7\n"
    (directory / "reward.py").write_text(code, encoding="utf-8")
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    content["data"] |= {
        "directory": "prompts",
        "sources": [{"name": "prompts", "path": "prompts.jsonl", "shape": "gsm8k"}],
    }
    content["data"]["tokenizer"] = {"kind": "byte", "special_tokens": "chat"}
    content["model"]["dropout"] = 0.0
    rollout = {"prompts": 8, "samples": 4, "max_new_tokens": 6, "updates": 2, "truncated": "keep"}
    rewards = {"custom": [{"code": "reward.py:uneven"}]}
    content["train"] |= {
        "steps": steps, "global_batch_size": 16, "checkpoint": {"every": every},
        "objective": {"kind": "grpo", "rewards": rewards, "rollout": rollout},
    }  # fmt: skip
    file = directory / "rollouts.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    command = [sys.executable, "-m", "data_prep", "run", str(file), "--out", str(directory / "data-of-prompts")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return file


@contextmanager
def small_disk(directory: Path, wanted: bool) -> Iterator[None]:
    """A file system of 32 MiB at `directory`, where one is wanted.

    Raises:
        SystemExit: where mounting is not permitted.
    """
    if not wanted:
        yield
        return
    directory.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(directory)]
    if (done := subprocess.run(command, capture_output=True, text=True, check=False)).returncode:
        raise SystemExit(f"disk-full needs a small file system, so leave it out with --kinds: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=False)


def disturb(chaos: Chaos, kinds: list[str], faults: int, steps: int, minutes: float) -> list[Outcome]:
    """Injects the faults at random steps, one after the other; each is over when new ranks are farther than before."""
    share, end = (steps - 20) / faults, time.monotonic() + 60 * minutes
    outcomes: list[Outcome] = []
    for number in range(faults):
        if time.monotonic() > end:
            break
        due = int(10 + share * (number + chaos.chance.random()))
        deadline = time.monotonic() + PATIENCE_SECONDS
        while chaos.step() < due and chaos.go_on() and time.monotonic() < deadline:
            time.sleep(0.005)
        kind = kinds[number % len(kinds)] if number < len(kinds) else chaos.chance.choice(kinds)
        before = chaos.ranks()
        step = chaos.step()
        began = time.monotonic()
        FAULTS[kind](chaos)
        # Processes that are told to end, or lost one of them, may well log some steps more.
        while chaos.step() <= step or (kind != "disk-full" and not chaos.renewed(before)):
            if time.monotonic() > began + PATIENCE_SECONDS:
                break
            if not chaos.go_on():
                break
            time.sleep(0.02)
        went_on = kind == "disk-full" and chaos.ranks() == before
        lost, seconds = (0, 0.0) if went_on else (chaos.lost_since(step), time.monotonic() - began)
        outcomes.append(Outcome(kind, step, lost, seconds))
        print(f"{number + 1:3} {outcomes[-1]}", flush=True)
    while chaos.go_on():
        time.sleep(0.05)
    return outcomes


def same_result(one: Path, other: Path) -> bool:
    """Whether two runs end with the same weights, and logged the same losses and drew the same answers, to the bit."""
    import torch

    from pretrain.checkpoint.load_weights import load_weights
    from pretrain.checkpoint.manifest import newest
    from pretrain.rollout.rollout_record import digest

    weights = []
    for run in (one, other):
        info = newest(run, hashes=True)
        assert info is not None
        weights.append(load_weights(info).state_dict())
    equal = all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    losses = [
        {entry["step"]: entry["train/loss"] for entry in read_metrics(run) if "train/loss" in entry}
        for run in (one, other)
    ]
    return equal and losses[0] == losses[1] and digest(one) == digest(other)


def table(outcomes: list[Outcome]) -> str:
    """Markdown: a row per kind of fault."""
    rows = ["| fault | times | steps lost, median (most) | seconds lost, median (most) |", "|---|---|---|---|"]
    for kind in sorted({outcome.kind for outcome in outcomes}):
        of_kind = [outcome for outcome in outcomes if outcome.kind == kind]
        steps = [outcome.steps_lost for outcome in of_kind]
        seconds = [outcome.seconds_lost for outcome in of_kind]
        rows.append(
            f"| {kind} | {len(of_kind)} | {statistics.median(steps):g} ({max(steps)}) "
            f"| {statistics.median(seconds):.1f} ({max(seconds):.1f}) |"
        )
    return "\n".join(rows)


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=20, help="steps between checkpoints")
    parser.add_argument("--kinds", default=",".join(FAULTS))
    parser.add_argument("--minutes", type=float, default=60, help="after these there are no more faults")
    parser.add_argument("--rollouts", action="store_true", help="a run of reinforcement learning")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, help="where to work")
    parser.add_argument("--json", type=Path, help="write the outcomes here")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="settings of the run")
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    if unknown := set(kinds) - set(FAULTS):
        parser.error(f"unknown kinds {sorted(unknown)}; there are {', '.join(FAULTS)}")
    with tempfile.TemporaryDirectory(prefix="chaos-", dir=options.directory, ignore_cleanup_errors=True) as name:
        directory = Path(name)
        recipe = prepare(directory, options.steps, options.every, options.overrides)
        if options.rollouts:
            recipe = as_rollouts(recipe, options.steps, options.every)
        began = time.monotonic()
        undisturbed = Chaos(recipe, directory / "undisturbed", random.Random(options.seed))
        while undisturbed.go_on():
            time.sleep(0.05)
        quiet = time.monotonic() - began
        with small_disk(directory / "disturbed" / "checkpoints", "disk-full" in kinds):
            chaos = Chaos(recipe, directory / "disturbed", random.Random(options.seed))
            outcomes = disturb(chaos, kinds, options.faults, options.steps, options.minutes)
            loud = time.monotonic() - began - quiet
            equal = same_result(directory / "undisturbed", directory / "disturbed")
        if not equal or chaos.persons:
            print((directory / "disturbed.log").read_text(encoding="utf-8", errors="replace")[-8000:])
    print(table(outcomes))
    print(
        f"{len(outcomes)} faults; {quiet:.0f} s undisturbed, {loud:.0f} s disturbed; a person was needed "
        f"{chaos.persons} times; the results are {'equal to the bit' if equal else 'DIFFERENT'}"
    )
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1), encoding="utf-8")
    return 0 if equal and not chaos.persons else 1


if __name__ == "__main__":
    sys.exit(main())

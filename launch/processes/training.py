"""Starts the processes that train, and believes only the checkpoint they leave.

One rank trains in this process. Several are started by DeepSpeed's node launcher. That launcher can end with exit code
0 although its ranks died, so what counts is the committed checkpoint of the last step.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from configs.common.exit_codes import INTERRUPTED, STOPPED_EARLY, TERMINATED
from configs.safety.trust import trust_options
from configs.schema.recipe import RESOLVED_NAME, Recipe
from pretrain.phases import Phase
from pretrain.reliability.rank_heartbeat import LOST_RANK, read_beats

TRAIN_SCRIPT = Path(__file__).resolve().parents[2] / "pretrain" / "train.py"
_GRACE_SECONDS = 60.0  # to finish a step and save
_POLL_SECONDS = 1.0
_LOST_GRACE_SECONDS = 5.0
_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)


class TrainingFailed(ValueError):
    """Training ended without the checkpoint of its last step."""


def count_ranks(recipe: Recipe) -> int:
    """Processes to train with on this machine: `train.ranks`, else one per visible GPU, else one.

    Raises:
        ValueError: when more are asked for than there are GPUs.
    """
    import torch

    gpus = torch.cuda.device_count()
    asked = recipe.train.ranks
    if asked is not None and 0 < gpus < asked:
        raise ValueError(f"train.ranks asks for {asked} processes, but this machine has {gpus} GPUs; lower it")
    return asked or max(1, gpus)


def train_here(recipe: Recipe) -> None:
    """Trains in this process, the only rank.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when it has saved.
        SystemExit: likewise after SIGTERM (143) and SIGUSR1 (75).
    """
    from pretrain.signals import StoppedEarly
    from pretrain.train import train

    try:
        with environment_first():
            train(recipe)
    except StoppedEarly as stopped:
        if stopped.number == signal.SIGINT:
            raise KeyboardInterrupt from stopped
        raise SystemExit(TERMINATED if stopped.number == signal.SIGTERM else STOPPED_EARLY) from stopped


def train_ranks(recipe: Recipe, ranks: int) -> None:
    """Trains with `ranks` processes on this machine; the resolved recipe must be in the run directory.

    Raises:
        TrainingFailed: when a process fails; its own message stands above.
        KeyboardInterrupt: when Ctrl-C stopped them.
        SystemExit: 75, when another signal stopped them and they saved.
    """
    code = ranks_exit_code(recipe, ranks)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code == STOPPED_EARLY:
        raise SystemExit(STOPPED_EARLY)
    if code:
        raise TrainingFailed(
            f"training stopped with exit code {code} (its own message stands above); "
            "after the cause is gone, the same command continues from the newest checkpoint"
        )


def ranks_exit_code(recipe: Recipe, ranks: int) -> int:
    """Trains with `ranks` processes; returns their launcher's exit code. None of them outlives the call."""
    began = time.time()
    with environment_first():
        launcher = _spawn(_launcher(recipe.run_directory / RESOLVED_NAME, recipe, ranks))
    return _wait(launcher, recipe.run_directory, began)


@contextmanager
def environment_first() -> Iterator[None]:
    """Has this environment's `bin` first on PATH: DeepSpeed compiles an operator with the `ninja` that lies there."""
    here, before = str(Path(sys.executable).parent), os.environ.get("PATH")
    if (before or "").split(os.pathsep)[0] != here:
        os.environ["PATH"] = os.pathsep.join([here, before or ""])
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PATH", None)
        else:
            os.environ["PATH"] = before


def _launcher(recipe_file: Path, recipe: Recipe, ranks: int) -> list[str]:
    # What `deepspeed --num_accelerators N` runs in the end. Started directly, it ends its ranks when it is told to end,
    # which the `deepspeed` command above it does not.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    devices = [int(item) for item in visible.split(",") if item.isdigit()][:ranks]
    world = {"localhost": devices if len(devices) == ranks else list(range(ranks))}
    encoded = base64.urlsafe_b64encode(json.dumps(world).encode()).decode()
    return [
        *(sys.executable, "-u", "-m", "deepspeed.launcher.launch"),
        *(f"--world_info={encoded}", "--master_addr=127.0.0.1", f"--master_port={free_port()}"),
        *("--no_local_rank", "--quiet", "--log_level=error"),
        *(str(TRAIN_SCRIPT), "--recipe", str(recipe_file), "--out", str(recipe.run_directory)),
        *trust_options(),
        # A restart on fewer ranks left their number in the run directory's recipe.
        *([] if recipe.train.ranks is None else [f"train.ranks={ranks}"]),
    ]


def free_port() -> int:
    """A port of this machine's loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Runs in the child before the command, in whose place it then steps. A function for the fork (`preexec_fn`) would run
# Python in a copy of a process whose threads may hold locks.
_BOUND = f"""
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl({_SET_PARENT_DEATH_SIGNAL}, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the process that started this one has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


def bound(command: Sequence[str]) -> list[str]:
    """The command such that it gets SIGTERM when this process ends, however it ends.

    A `kill -9` must not leave ranks behind that go on writing.
    """
    return [sys.executable, "-I", "-S", "-c", _BOUND, str(os.getpid()), *command]


def _spawn(command: list[str]) -> subprocess.Popen[bytes]:
    # Its own session: Ctrl-C reaches this process alone, which then ends the others in order. What the launcher says
    # goes to standard error: standard output is for results.
    return subprocess.Popen(bound(command), start_new_session=True, stdout=sys.stderr.fileno())


def _wait(process: subprocess.Popen[bytes], run: Path, began: float) -> int:
    """The launcher's exit code; `began`: Unix time before it was started."""
    try:
        while not _rank_is_lost(run, began):
            with suppress(subprocess.TimeoutExpired):
                return process.wait(_POLL_SECONDS)
        # DeepSpeed's launcher gives a rank that does not answer 30 s to end. A rank that gave the run up wrote why.
        with suppress(subprocess.TimeoutExpired):
            return process.wait(_LOST_GRACE_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return LOST_RANK
    finally:  # on Ctrl-C or SIGTERM nothing may stay alive; after a normal end there is nothing left to stop
        for order in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, order)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_SECONDS)


def _rank_is_lost(run: Path, began: float) -> bool:
    """Whether a rank of this start has ended because another one is gone or stuck."""
    return any(beat.phase == Phase.ENDED and beat.time >= began for beat in read_beats(run).values())

"""Starts training. Success means a committed checkpoint of the last step, not exit code 0.

One rank trains in this process. DeepSpeed's node launcher starts several ranks. It can exit with 0 although its ranks
crashed, so its exit code is not used as the sign of success.
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
    """Returns the number of ranks on this machine: `train.ranks`, else one per visible GPU, else one.

    Raises:
        ValueError: when `train.ranks` is more than the number of GPUs.
    """
    import torch

    gpus = torch.cuda.device_count()
    asked = recipe.train.ranks
    if asked is not None and 0 < gpus < asked:
        raise ValueError(f"train.ranks asks for {asked} processes, but this machine has {gpus} GPUs; lower it")
    return asked or max(1, gpus)


def train_here(recipe: Recipe) -> None:
    """Trains in this process, as the only rank.

    Raises:
        KeyboardInterrupt: after Ctrl-C and saving.
        SystemExit: after SIGTERM (143) or SIGUSR1 (75), and saving.
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
        TrainingFailed: when a process fails; it has printed its own message.
        KeyboardInterrupt: after Ctrl-C.
        SystemExit: 75, after another signal and saving.
    """
    code = ranks_exit_code(recipe, ranks)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code == STOPPED_EARLY:
        raise SystemExit(STOPPED_EARLY)
    if code:
        raise TrainingFailed(
            f"training stopped with exit code {code} (see its own message above); fix the cause, then the same command "
            "continues from the newest checkpoint"
        )


def ranks_exit_code(recipe: Recipe, ranks: int) -> int:
    """Trains with `ranks` processes; returns their launcher's exit code. All have ended when it returns."""
    began = time.time()
    with environment_first():
        launcher = _spawn(_launcher(recipe.run_directory / RESOLVED_NAME, recipe, ranks))
    return _wait(launcher, recipe.run_directory, began)


@contextmanager
def environment_first() -> Iterator[None]:
    """Puts this environment's `bin` first on PATH: DeepSpeed compiles an operator with the `ninja` there."""
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
    # The command `deepspeed --num_accelerators N` starts this launcher. Started directly, the launcher ends its ranks
    # on a signal; the `deepspeed` command would not pass the signal on.
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
        # After a restart on fewer ranks, the run directory's recipe still has another number.
        *([] if recipe.train.ranks is None else [f"train.ranks={ranks}"]),
    ]


def free_port() -> int:
    """Finds a port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# The child runs this before it replaces itself by the command. A `preexec_fn` would run Python in a forked copy of a
# process whose threads may hold locks.
_BOUND = f"""
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl({_SET_PARENT_DEATH_SIGNAL}, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the process that started this one has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


def bound(command: Sequence[str]) -> list[str]:
    """Wraps a command so that it gets SIGTERM when this process ends, even by a crash.

    After a `kill -9`, no rank may stay and continue to write.
    """
    return [sys.executable, "-I", "-S", "-c", _BOUND, str(os.getpid()), *command]


def _spawn(command: list[str]) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C reaches this process only, which then ends the ranks in order. The launcher prints to
    # standard error, since standard output is for results.
    return subprocess.Popen(bound(command), start_new_session=True, stdout=sys.stderr.fileno())


def _wait(process: subprocess.Popen[bytes], run: Path, began: float) -> int:
    """Waits for the launcher; returns its exit code. `began`: Unix time before it was started."""
    try:
        while not _rank_is_lost(run, began):
            with suppress(subprocess.TimeoutExpired):
                return process.wait(_POLL_SECONDS)
        # DeepSpeed's launcher waits 30 s for a rank that does not react. The rank that ended has printed the reason.
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
    """Tells whether a rank of this start has ended because another one has ended or is stuck."""
    return any(beat.phase == Phase.ENDED and beat.time >= began for beat in read_beats(run).values())

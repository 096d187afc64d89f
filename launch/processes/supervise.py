"""Implements `replica train --supervise`: runs training in child processes, and restarts them if they end too early.

Training is done when the checkpoint of its last step exists, whatever the exit code. A restart uses as many ranks as
there are devices at that time. So a run that lost a GPU continues with fewer ranks, and uses the GPU again when it is
back. Accumulation keeps the global batch the same.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from configs.common.exit_codes import STOPPED_EARLY, USER_ERROR
from configs.common.notices import say
from configs.schema.batch_plan import solve_batch
from configs.schema.recipe import Recipe
from launch.processes.training import TrainingFailed, count_ranks, ranks_exit_code
from pretrain.checkpoint.compatible import is_finished
from pretrain.checkpoint.manifest import newest
from pretrain.reliability.rank_heartbeat import LOST_RANK


def supervise(recipe: Recipe, restarts: int, pause: float) -> Path:
    """Trains to the last step through crashes, killed ranks and hangs; returns the checkpoint.

    Args:
        recipe: the run directory must contain its resolved form.
        restarts: number of consecutive restarts without a newer checkpoint.
        pause: seconds before each restart.

    Raises:
        TrainingFailed: when the user has something to fix, or the restarts are used up.
    """
    ranks = count_ranks(recipe)

    def attempt() -> int:
        return ranks_exit_code(recipe, ranks)

    def prepare() -> str:
        nonlocal ranks
        ranks = ranks_left(recipe)
        return f"{ranks} ranks"

    return until_finished(recipe, restarts, pause, attempt, prepare)


def until_finished(
    recipe: Recipe, restarts: int, pause: float, attempt: Callable[[], int], prepare: Callable[[], str]
) -> Path:
    """Repeats training until the checkpoint of the last step exists, and returns it.

    Args:
        recipe: the run directory must contain its resolved form.
        restarts: number of consecutive restarts without a newer checkpoint.
        pause: seconds before each restart.
        attempt: trains once; returns an exit code.
        prepare: finds the devices for the next attempt; returns their description.

    Raises:
        TrainingFailed: when the user has something to fix, or the restarts are used up.
    """
    stalled, best = 0, _newest_step(recipe)
    while not is_finished(recipe):
        code = attempt()
        if is_finished(recipe):
            break
        if code == USER_ERROR:
            raise TrainingFailed("training cannot continue by itself; see its error message above")
        step = _newest_step(recipe)
        stalled = 0 if step > best else stalled + 1
        best = max(best, step)
        what = f"training ended with exit code {code} ({_meaning(code)}), newest checkpoint at step {step}"
        if stalled > restarts:
            raise TrainingFailed(
                f"{what}; {restarts} restarts made no newer checkpoint; fix the cause, then the same command continues"
            )
        number = f"restart {stalled} of {restarts} without progress" if stalled else "restart"
        say(f"{what}; {number} in {pause:g} s on {prepare()}")
        time.sleep(pause)
    info = newest(recipe.run_directory)
    assert info is not None
    return info.directory


def ranks_left(recipe: Recipe, devices: int | None = None) -> int:
    """Chooses the number of ranks for a restart: the largest for which there are devices and the batch divides.

    Args:
        recipe: `train.ranks` is the upper limit.
        devices: GPUs on this machine; None: count them now; 0: a CPU machine, where ranks need no device.
    """
    devices = _count_gpus() if devices is None else devices
    most = min(recipe.train.ranks or devices, devices) if devices else recipe.train.ranks or 1
    for ranks in range(most, 0, -1):
        try:
            solve_batch(recipe.train, ranks)
        except ValueError:
            continue
        return ranks
    raise ValueError(
        f"train.global_batch_size {recipe.train.global_batch_size} cannot be divided over 1 to {most} ranks; change it"
    )


def _count_gpus() -> int:
    """Counts GPUs in a new process: torch caches its first answer, and a failed device may crash the process."""
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        reason = done.stderr.strip()[-500:]
        raise TrainingFailed(f"counting the GPUs failed: {reason}; restart the machine or its driver")
    return int(done.stdout)


def _newest_step(recipe: Recipe) -> int:
    info = newest(recipe.run_directory)
    return 0 if info is None else info.step


def _meaning(code: int) -> str:
    if code == 0:
        return "the launcher reported success, but the last step was not made"
    if code == STOPPED_EARLY:
        return "stopped by a signal after saving"
    if code == LOST_RANK:
        return "another rank is gone or stuck; the message above names it"
    # DeepSpeed's launcher reports a rank's -9 as 256 - 9.
    signal_number = -code if code < 0 else 256 - code if code > 192 else code - 128 if code > 128 else 0
    return f"signal {signal_number}" if signal_number else "an error; see above"

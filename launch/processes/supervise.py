"""`replica train --supervise`: training in processes of its own, started again when they end too early.

Whether training is done is decided by the checkpoint of its last step, never by an exit code. A restart takes as many
ranks as there are devices then, so a run that lost a GPU goes on with fewer and takes it back when it returned; the
global batch stays, by accumulation.
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
        recipe: whose resolved form lies in the run directory.
        restarts: how many times in a row training may end without a newer checkpoint than before.
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
    """Makes attempts until the checkpoint of the last step is there, and returns it.

    Args:
        recipe: whose resolved form lies in the run directory.
        restarts: how many times in a row an attempt may end without a newer checkpoint than before.
        pause: seconds before each restart.
        attempt: trains once; returns an exit code.
        prepare: looks what is left for the next attempt; says on what it will run.

    Raises:
        TrainingFailed: when the user has something to fix, or the restarts are used up.
    """
    stalled, best = 0, _newest_step(recipe)
    while not is_finished(recipe):
        code = attempt()
        if is_finished(recipe):
            break
        if code == USER_ERROR:
            raise TrainingFailed("training cannot go on by itself; its message stands above")
        step = _newest_step(recipe)
        stalled = 0 if step > best else stalled + 1
        best = max(best, step)
        what = f"training ended with exit code {code} ({_meaning(code)}), newest checkpoint at step {step}"
        if stalled > restarts:
            raise TrainingFailed(f"{what}; {restarts} restarts brought no newer one. The same command continues")
        number = f"restart {stalled} of {restarts} without progress" if stalled else "restart"
        say(f"{what}; {number} in {pause:g} s on {prepare()}")
        time.sleep(pause)
    info = newest(recipe.run_directory)
    assert info is not None
    return info.directory


def ranks_left(recipe: Recipe, devices: int | None = None) -> int:
    """Ranks for a restart: the most, up to what was asked for, that there are devices for and the batch divides over.

    Args:
        recipe: says how many are wanted.
        devices: GPUs on this machine; None: counted now. 0: a CPU machine, where ranks need no device.
    """
    devices = _count_gpus() if devices is None else devices
    most = min(recipe.train.ranks or devices, devices) if devices else recipe.train.ranks or 1
    for ranks in range(most, 0, -1):
        try:
            solve_batch(recipe.train, ranks)
        except ValueError:
            continue
        return ranks
    raise ValueError(f"train.global_batch_size {recipe.train.global_batch_size} divides over no number of ranks")


def _count_gpus() -> int:
    """In a fresh process: torch remembers its first answer, and a device that died may take the process with it."""
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise TrainingFailed(f"the GPUs cannot be counted any more: {done.stderr.strip()[-500:]}")
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
    # DeepSpeed's launcher hands a rank's -9 on as 256 - 9.
    signal_number = -code if code < 0 else 256 - code if code > 192 else code - 128 if code > 128 else 0
    return f"signal {signal_number}" if signal_number else "an error, which stands above"

"""Evaluates on several ranks: starts them on this machine, or takes part as one that a launcher started.

Every launcher of training starts ranks of an evaluation as well: each runs `replica eval RUN`. DeepSpeed's launcher,
torchrun and srun say by the environment which rank a process is (`pretrain.parallel.ranks`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from configs.common.exit_codes import BUG, INTERRUPTED, STOPPED_EARLY, TERMINATED
from configs.common.layout import RESULTS
from configs.safety.trust import trust_options
from configs.schema.recipe import Recipe
from eval.results import ScoresBroken, ScoresFailed
from launch.processes.rank_group import outcome, rank_environment, wait_for_ranks
from launch.processes.training import bound, free_port
from pretrain.checkpoint.choice import Choice
from pretrain.reliability.rank_heartbeat import LOST_RANK

COMMAND = [sys.executable, "-u", "-m", "launch.cli", "eval"]  # of a rank
_STARTER_SAYS = "REPLICA_STARTER_SAYS_RESULTS"  # set for ranks whose starter prints the path of the results


def evaluation_ranks(recipe: Recipe, asked: int | None = None) -> int:
    """Returns the number of ranks on this machine: as asked, else as in training, as far as this machine has room.

    Room is one GPU for each rank. Without GPUs it is one core.

    Raises:
        ValueError: when more are asked for than there are GPUs.
    """
    import torch

    gpus = torch.cuda.device_count()
    if asked is not None:
        if 0 < gpus < asked:
            raise ValueError(f"--ranks {asked} asks for {asked} processes, but this machine has {gpus} GPUs; lower it")
        return asked
    trained = recipe.train.ranks
    if trained is None:
        return max(1, gpus)
    return min(trained, gpus or len(os.sched_getaffinity(0)))


def score_run(
    run: Path, ranks: int, overrides: Sequence[str] = (), choice: Choice | None = None, again: bool = False
) -> Path:
    """Evaluates a run in this process, or in several on this machine; returns the path of its results.

    Args:
        run: the run directory.
        ranks: processes; 1: this one.
        overrides: as those below, see `eval.suite.evaluate`.
        choice: the checkpoint.
        again: do not reuse stored scores.

    Raises:
        ValueError: see `eval.suite.evaluate`.
        ScoresFailed: some scores failed. Of several ranks, the first has printed the reason.
        ScoresBroken: some scores failed by a bug.
        KeyboardInterrupt: after Ctrl-C.
        SystemExit: when another signal ended the ranks.
    """
    if ranks == 1:
        from eval.suite import evaluate

        return evaluate(run, overrides, choice=choice, again=again)
    results = run / RESULTS
    before = stamp_of(results)
    step = [] if choice is None or choice.step is None else ["--step", str(choice.step)]
    flags = [*(["--best"] if choice is not None and choice.best else []), *(["--again"] if again else [])]
    code = _exit_code(ranks, [str(run), *step, *flags, *trust_options(), *overrides])
    raise_for(code, f"{ranks} ranks", stamp_of(results) != before)
    return results


def says_results() -> bool:
    """Returns whether this process prints the path of the results; a rank that `score_run` started does not."""
    return _STARTER_SAYS not in os.environ


def raise_for(code: int, where: str, saved: bool) -> None:
    """Raises what an exit code of an evaluation's ranks means; of 0, nothing.

    Args:
        code: of all ranks together, see `launch.processes.rank_group.outcome`.
        where: on how many ranks.
        saved: there are new results.
    """
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code in {STOPPED_EARLY, TERMINATED, -signal.SIGTERM}:
        raise SystemExit(STOPPED_EARLY if code == STOPPED_EARLY else TERMINATED)
    if code:
        kind = ScoresBroken if code == BUG else ScoresFailed
        lost = "; the same command goes on" if code < 0 or code in {LOST_RANK, 128 + signal.SIGKILL} else ""
        what = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
        raise kind(f"the evaluation on {where} failed ({what}, see above){lost}", saved)


def stamp_of(file: Path) -> tuple[int, int] | None:
    """Returns what tells a file from its next version; None where there is none."""
    with suppress(FileNotFoundError):
        found = file.stat()
        return found.st_mtime_ns, found.st_ino
    return None


def _exit_code(ranks: int, words: Sequence[str]) -> int:
    """Runs `replica eval` as each rank; returns one exit code. All have ended when it returns or raises."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    grace = float(os.environ.get("REPLICA_GRACE", 60))
    command = bound([*COMMAND, *words])
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(ranks):
            variables = {**os.environ, **rank_environment(0, 1, rank, ranks), **place, _STARTER_SAYS: "1"}
            # A session of its own: Ctrl-C reaches this process alone, which ends the ranks in order. They print to
            # standard error, since standard output is for results.
            processes.append(
                subprocess.Popen(command, env=variables, start_new_session=True, stdout=sys.stderr.fileno())
            )
        codes = wait_for_ranks(processes, lambda: None, lambda _: None, grace, poll_seconds=0.1)
    finally:
        end_all(processes, grace)
    return outcome({0: codes}, 1)


def end_all(processes: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    """Ends processes that still run: in order, and after `grace` seconds at once."""
    for order, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, grace)):
        deadline = time.monotonic() + seconds
        for process in processes:
            if process.poll() is None:
                process.send_signal(order)
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))

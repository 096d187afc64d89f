"""Waits for the ranks of this machine, and chooses one exit code for all ranks."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from configs.common.exit_codes import INTERRUPTED, STOPPED_EARLY, TERMINATED, USER_ERROR
from pretrain.reliability.rank_heartbeat import LOST_RANK

# Exit codes of ranks that stopped as ordered. -SIGTERM: the signal came before or after Python's handler was active.
STOPPED = {0, STOPPED_EARLY, TERMINATED, INTERRUPTED, -signal.SIGTERM}
POLL_SECONDS = 0.5
_LOST_GRACE_SECONDS = 5.0


def rank_environment(node: int, nodes: int, local: int, ranks: int) -> dict[str, str]:
    """Returns the variables for local rank `local` on node number `node`, with `nodes` nodes of `ranks` ranks."""
    return {
        "RANK": str(node * ranks + local),
        "WORLD_SIZE": str(nodes * ranks),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(ranks),
    }


def wait_for_ranks(
    ranks: list[subprocess.Popen[bytes]],
    order: Callable[[], float | None],
    failed: Callable[[float], object],
    grace: float,
    poll_seconds: float | None = None,
) -> list[int]:
    """Waits for all ranks; returns their exit codes. All have ended when it returns.

    Args:
        ranks: the processes.
        order: returns None, or after an order to stop the seconds that ranks have to save and end.
        failed: called when a rank failed, with the seconds that the ranks of all nodes have to end.
        grace: these seconds. They are fewer once a rank has ended because of a lost rank, since none can save then.
        poll_seconds: between looks at the processes; None: half a second.

    Ranks get SIGTERM, and after the deadline SIGKILL.
    """
    deadline: float | None = None
    while None in (codes := [rank.poll() for rank in ranks]):
        if deadline is not None:
            if time.monotonic() > deadline:
                _send(ranks, signal.SIGKILL)
        elif (seconds := _after_failure(codes, grace) if any(codes) else order()) is not None:
            if any(codes):
                failed(seconds)
            deadline = time.monotonic() + seconds
            _send(ranks, signal.SIGTERM)
        time.sleep(poll_seconds or POLL_SECONDS)
    if any(codes):
        failed(_after_failure(codes, grace))
    return [code for code in codes if code is not None]


def _after_failure(codes: Sequence[int | None], grace: float) -> float:
    return min(grace, _LOST_GRACE_SECONDS) if LOST_RANK in codes else grace


def _send(ranks: list[subprocess.Popen[bytes]], number: int) -> None:
    for rank in ranks:
        rank.send_signal(number)  # does nothing when it has ended


def outcome(codes: Mapping[int, Sequence[int]], nodes: int) -> int:
    """Chooses one exit code for an attempt: first a user error, then a rank's own failure, then a lost node or rank.

    Args:
        codes: exit codes of the ranks, by node, for nodes that reported.
        nodes: number of nodes of the attempt.
    """
    every = [code for node in sorted(codes) for code in codes[node]]
    if USER_ERROR in every:
        return USER_ERROR
    # A rank that ended because of another rank, or by an order to stop, is not the cause.
    causes = [code for code in every if code not in STOPPED | {LOST_RANK}]
    if causes:
        return causes[0]
    if len(codes) < nodes or LOST_RANK in every:
        return LOST_RANK
    # Ranks that have stopped make their launcher end the others, which may not yet have got the first order.
    return next((code for code in (STOPPED_EARLY, INTERRUPTED, TERMINATED, -signal.SIGTERM) if code in every), 0)

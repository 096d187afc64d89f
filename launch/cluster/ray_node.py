"""What `launch/ray.sh train` does on every node: a worker of Ray Train's starts that node's ranks and watches them.

Ray Train runs its loop in a thread of the worker, where signals do not arrive. So ranks are processes of their own,
which meet by torch's rendezvous as under any launcher; the kernel ends them with their worker.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.common.exit_codes import INTERRUPTED, STOPPED_EARLY, TERMINATED
from configs.common.locks import locked
from launch.processes.training import bound, free_port
from pretrain.reliability.rank_heartbeat import DIRECTORY, LOST_RANK

# Exit codes of ranks that did as they were told; SIGTERM itself when it came before Python's handler or after it.
STOPPED = {0, STOPPED_EARLY, TERMINATED, INTERRUPTED, -signal.SIGTERM}
_POLL_SECONDS = 0.5
_LOST_GRACE_SECONDS = 5.0
_STANDARD_ERROR = 2  # `sys.stderr` is an object of Ray's in a worker
_SHARED_SECONDS = 10.0  # a file system shared over a network may show a new file late


@dataclass(frozen=True)
class Start:
    """How the ranks of each node are started; the same for all nodes."""

    arguments: tuple[str, ...]  # of Python
    directory: str  # that relative paths in the recipe mean
    run: str  # run directory, which all nodes see
    environment: dict[str, str]  # variables of the command's that ranks need
    ranks: int  # of one node
    grace: float  # seconds to finish a step and save


class Coordinator:
    """An actor beside the command: carries the order to stop to all nodes, and what becomes of them back."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._stop, self._all_ended = asyncio.Event(), asyncio.Event()
        self._seconds = 0.0
        self._codes: dict[int, list[int]] = {}
        self._addresses: dict[int, str] = {}

    async def begin(self, node: int, address: str) -> None:
        """A node is about to start its ranks."""
        self._addresses[node] = address

    async def stop(self, seconds: float) -> None:
        """All ranks are to save and end, and have so many seconds for it; the first order counts."""
        if not self._stop.is_set():
            self._seconds = seconds
            self._stop.set()

    async def stopping(self) -> float:
        """Returns when all ranks are to end: the seconds that they have."""
        await self._stop.wait()
        return self._seconds

    async def report(self, node: int, codes: list[int]) -> None:
        """Exit codes of the ranks of a node, which have all ended."""
        self._codes[node] = codes
        if len(self._codes) == self._nodes:
            self._all_ended.set()

    async def all_ended(self) -> None:
        """Returns when all nodes have reported."""
        await self._all_ended.wait()

    async def known(self) -> tuple[dict[int, str], dict[int, list[int]]]:
        """Addresses of the nodes that began, and exit codes of those that reported, until now."""
        return self._addresses, self._codes


def train_node(config: dict[str, Any]) -> None:
    """Runs the ranks of one node to their end; Ray Train's `train_loop_per_worker`, one worker on each node.

    Raises:
        ValueError: when this node does not see the run directory, or ranks of an earlier start still run here.
        RuntimeError: when a rank failed.
    """
    import ray
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    start, coordinator = config["start"], config["coordinator"]
    node, nodes = (context := ray.train.get_context()).get_world_rank(), context.get_world_size()
    here = ray.util.get_node_ip_address()
    ray.get(coordinator.begin.remote(node, here))
    check_shared(Path(start.run), here)
    with only_start_here(start.run, here, start.grace) as descriptor:
        # Of the first node, at the last moment: somebody else may take a free port.
        host, port = broadcast_from_rank_zero((here, free_port()))
        places = [rank_environment(node, nodes, local, start.ranks) for local in range(start.ranks)]
        ranks = [
            _start_rank(start, {**one, "MASTER_ADDR": host, "MASTER_PORT": str(port)}, descriptor) for one in places
        ]
        coming = coordinator.stopping.remote()

        def order() -> float | None:
            try:
                return float(ray.get(coming, timeout=0.01))
            except ray.exceptions.GetTimeoutError:
                return None
            except ray.exceptions.RayError:  # the coordinator is gone, and the command with it
                return float(start.grace)

        codes = watch(ranks, order, coordinator.stop.remote, start.grace)
    ray.get(coordinator.report.remote(node, codes))
    if not set(codes) <= STOPPED:
        # Ray Train kills all workers once one has raised; the other nodes' ranks shall end in order before.
        ray.wait([coordinator.all_ended.remote()], timeout=start.grace)
        raise RuntimeError(f"its ranks ended with exit codes {codes}")


def watch(
    ranks: list[subprocess.Popen[bytes]],
    order: Callable[[], float | None],
    failed: Callable[[float], object],
    grace: float,
) -> list[int]:
    """Waits for all ranks; returns their exit codes. None of them outlives the call.

    Args:
        ranks: processes.
        order: None as long as there is no order to stop, then the seconds that ranks have to save and end.
        failed: called when a rank failed, with the seconds that the ranks of all nodes have.
        grace: those seconds; fewer once a rank has given the run up, as then nobody can save.

    SIGTERM tells ranks to end, SIGKILL those that have not in time.
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
        time.sleep(_POLL_SECONDS)
    if any(codes):
        failed(_after_failure(codes, grace))
    return [code for code in codes if code is not None]


def _after_failure(codes: Sequence[int | None], grace: float) -> float:
    return min(grace, _LOST_GRACE_SECONDS) if LOST_RANK in codes else grace


def _send(ranks: list[subprocess.Popen[bytes]], number: int) -> None:
    for rank in ranks:
        rank.send_signal(number)  # does nothing when it has ended


def rank_environment(node: int, nodes: int, local: int, ranks: int) -> dict[str, str]:
    """What tells a rank its place: number `local` of the `ranks` of node number `node` of `nodes`."""
    return {
        "RANK": str(node * ranks + local),
        "WORLD_SIZE": str(nodes * ranks),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(ranks),
    }


def _start_rank(start: Start, place: dict[str, str], descriptor: int) -> subprocess.Popen[bytes]:
    # Standard output is for results, and those are the command's.
    return subprocess.Popen(
        bound([sys.executable, *start.arguments]),
        cwd=start.directory,
        env={**environment_of_ranks(os.environ, start.environment), **place},
        stdout=_STANDARD_ERROR,
        pass_fds=(descriptor,),
        start_new_session=True,  # Ray kills the process group of a worker that ends
    )


def environment_of_ranks(worker: Mapping[str, str], command: Mapping[str, str]) -> dict[str, str]:
    """The environment of Ray's worker with the command's variables, without what Ray set for itself."""
    kept = {name: value for name, value in worker.items() if name != "OMP_NUM_THREADS"}  # Ray's: its CPUs of the node
    return {**kept, **command}


def check_shared(run: Path, here: str) -> None:
    """Raises `ValueError` when this node does not see the run directory."""
    deadline = time.monotonic() + _SHARED_SECONDS
    while not run.is_dir():
        if time.monotonic() > deadline:
            raise ValueError(
                f"node {here} does not see {run}: the run directory must lie on a file system that all nodes share; "
                "choose another with --out"
            )
        time.sleep(_POLL_SECONDS)


@contextmanager
def only_start_here(run: str, here: str, grace: float) -> Iterator[int]:
    """Holds a lock that ranks inherit, so that a new start waits for the ranks of the last one on this node.

    Those may have outlived their worker, saving, or stuck in a collective until their watch ends them. Yields the
    lock's descriptor.

    Raises:
        ValueError: when they still run after `grace` seconds.
    """
    file = Path(run) / DIRECTORY / f".node_{here}.lock"
    file.parent.mkdir(exist_ok=True)
    busy = (
        f"ranks of an earlier start of {run} still run on node {here}; they end by themselves after "
        f"train.watch.timeout_seconds, or `fuser -k {file}` there ends them"
    )
    with locked(file, busy, grace) as descriptor:
        yield descriptor

"""Runs the ranks of one node for `launch/ray.sh train`. A Ray Train worker starts them and waits for them.

Ray Train runs its loop in a thread of the worker, where no signals arrive. So ranks are separate processes that use
torch's rendezvous, as with any launcher. The kernel ends them together with their worker.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.common.locks import locked
from launch.processes.rank_group import STOPPED, rank_environment, wait_for_ranks
from launch.processes.training import bound, free_port
from pretrain.reliability.rank_heartbeat import DIRECTORY

_POLL_SECONDS = 0.5
_STANDARD_ERROR = 2  # `sys.stderr` is an object of Ray's in a worker
_SHARED_SECONDS = 10.0  # a file system shared over a network may show a new file late


@dataclass(frozen=True)
class Start:
    """The command, environment and number of ranks of each node; the same for all nodes."""

    arguments: tuple[str, ...]  # arguments of Python
    directory: str  # working directory
    run: str  # run directory, on a file system that all nodes share
    environment: dict[str, str]  # variables that ranks need
    ranks: int  # ranks per node
    grace: float  # seconds to finish a step and save


class Coordinator:
    """A Ray actor on the command's node: passes the order to stop to all nodes, and collects their exit codes."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._stop, self._all_ended = asyncio.Event(), asyncio.Event()
        self._seconds = 0.0
        self._codes: dict[int, list[int]] = {}
        self._addresses: dict[int, str] = {}

    async def begin(self, node: int, address: str) -> None:
        """Registers a node that is about to start its ranks."""
        self._addresses[node] = address

    async def stop(self, seconds: float) -> None:
        """Orders all ranks to save and end within some seconds. Later orders are ignored."""
        if not self._stop.is_set():
            self._seconds = seconds
            self._stop.set()

    async def stopping(self) -> float:
        """Waits for the order to stop; returns the seconds that ranks have."""
        await self._stop.wait()
        return self._seconds

    async def report(self, node: int, codes: list[int]) -> None:
        """Stores the exit codes of a node whose ranks have all ended."""
        self._codes[node] = codes
        if len(self._codes) == self._nodes:
            self._all_ended.set()

    async def all_ended(self) -> None:
        """Waits until all nodes have reported."""
        await self._all_ended.wait()

    async def known(self) -> tuple[dict[int, str], dict[int, list[int]]]:
        """Returns the addresses of nodes that have begun, and the exit codes of nodes that have reported."""
        return self._addresses, self._codes


def train_node(config: dict[str, Any]) -> None:
    """Runs the ranks of one node to their end. This is Ray Train's `train_loop_per_worker`, with one worker per node.

    Raises:
        ValueError: when the run directory is not visible on this node, or ranks of an earlier start still run here.
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
        # The first node chooses the port as late as possible, because another process could take it.
        host, port = broadcast_from_rank_zero((here, free_port()))
        environments = [rank_environment(node, nodes, local, start.ranks) for local in range(start.ranks)]
        ranks = [
            _start_rank(start, {**one, "MASTER_ADDR": host, "MASTER_PORT": str(port)}, descriptor)
            for one in environments
        ]
        coming = coordinator.stopping.remote()

        def order() -> float | None:
            try:
                return float(ray.get(coming, timeout=0.01))
            except ray.exceptions.GetTimeoutError:
                return None
            except ray.exceptions.RayError:  # the coordinator has ended, and so has the command
                return float(start.grace)

        codes = wait_for_ranks(ranks, order, coordinator.stop.remote, start.grace)
    ray.get(coordinator.report.remote(node, codes))
    if not set(codes) <= STOPPED:
        # Ray Train kills all workers once one has raised, so first let the ranks of the other nodes end in order.
        ray.wait([coordinator.all_ended.remote()], timeout=start.grace)
        raise RuntimeError(f"its ranks ended with exit codes {codes}")


def _start_rank(start: Start, variables: dict[str, str], descriptor: int) -> subprocess.Popen[bytes]:
    # Ranks print to standard error: standard output is for the command's result.
    return subprocess.Popen(
        bound([sys.executable, *start.arguments]),
        cwd=start.directory,
        env={**environment_of_ranks(os.environ, start.environment), **variables},
        stdout=_STANDARD_ERROR,
        pass_fds=(descriptor,),
        start_new_session=True,  # Ray kills the process group of a worker that ends
    )


def environment_of_ranks(worker: Mapping[str, str], command: Mapping[str, str]) -> dict[str, str]:
    """Merges the command's variables into the environment of Ray's worker, without OMP_NUM_THREADS of Ray."""
    # OMP_NUM_THREADS is set by Ray to the number of CPUs that it reserved for the worker.
    inherited = {name: value for name, value in worker.items() if name != "OMP_NUM_THREADS"}
    return {**inherited, **command}


def check_shared(run: Path, here: str) -> None:
    """Raises `ValueError` when the run directory is not visible on this node."""
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
    """Holds a lock that ranks inherit, so that a new start waits for ranks of the last start on this node.

    Such ranks may have outlived their worker: they may be saving, or wait in a collective until its timeout. Yields the
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

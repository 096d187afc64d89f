"""Runs a command as ranks on the nodes of a Ray cluster, by Ray Train: training, or an evaluation.

Ray Train starts one worker per node (`launch/cluster/ray_node.py`), and ends all workers when one is lost.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from configs.common.exit_codes import STOPPED_EARLY
from configs.common.notices import say
from launch.cluster.ray_node import Coordinator, Start, train_node
from launch.processes.rank_group import STOPPED, outcome
from launch.processes.training import TRAIN_SCRIPT

_PLACING_SECONDS = 120
_POLL_SECONDS = 0.5
_GRACE = "REPLICA_GRACE"  # seconds, as for launch/hostfile.sh
_RAYS_OWN = ".ray-train"  # folder in the run directory where Ray Train writes its own marker file
_FORWARDED = ("NCCL_", "GLOO_", "UCX_", "TORCH_", "OMP_", "REPLICA_")
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Settings of Ray Train. Its preemption watcher is off, because it would restart on the old number of nodes.
SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(_PLACING_SECONDS),
}


@dataclass(frozen=True)
class Placement:
    """Nodes, ranks and GPUs of one attempt."""

    nodes: int
    ranks: int  # per node
    gpus: int  # per node; 0: on CPUs

    def __str__(self) -> str:
        return f"{self.nodes} node{'s' * (self.nodes > 1)} x {self.ranks} rank{'s' * (self.ranks > 1)}"


def nodes_that_fit(cluster: Sequence[Mapping[str, float]], ranks: int | None, needed: int) -> Placement:
    """Chooses the nodes that have room for a number of ranks.

    Args:
        cluster: resources of each node, as Ray counts them (CPU, GPU). If any node has GPUs, nodes without are not
            used.
        ranks: per node; None: the smallest number of GPUs of a node with GPUs, else one.
        needed: number of nodes without which nothing can start.

    Raises:
        ValueError: when there are fewer nodes than needed.
    """
    gpus = [int(node.get("GPU", 0)) for node in cluster if node.get("GPU", 0) >= 1]
    each = ranks or (min(gpus) if gpus else 1)
    fit = sum(node.get("CPU", 0) >= 1 and (not gpus or node.get("GPU", 0) >= each) for node in cluster)
    need = f"1 CPU and {each} GPUs" if gpus else "1 CPU"
    if fit < needed:
        raise ValueError(
            f"{fit} of the cluster's {len(cluster)} nodes have {need}, and {needed} are needed "
            "(launch/ray.sh status); add nodes with launch/ray.sh start --address …, or ask for fewer with --nodes"
        )
    return Placement(fit, each, each if gpus else 0)


@contextmanager
def joined(address: str) -> Iterator[Any]:
    """Connects to a Ray cluster. Each attempt connects anew, so that Ray removes all actors of the last one."""
    try:
        import ray
        import ray.train
    except ImportError as error:
        raise ValueError(f"Ray Train cannot be imported: {error}; `make setup` installs all its packages") from error
    logging.getLogger("ray").setLevel(logging.ERROR)
    path = os.pathsep.join(dict.fromkeys([str(TRAIN_SCRIPT.parents[1]), *os.environ.get("PYTHONPATH", "").split(":")]))
    try:
        with _signals_stay_ours():
            ray.init(
                address=address,
                runtime_env={"env_vars": {"PYTHONPATH": path.strip(":")}},
                configure_logging=False,
                logging_level=logging.ERROR,
            )
    except ConnectionError as error:
        raise ValueError(
            f"no Ray cluster answers at {address}: this machine must be one of its nodes (`launch/ray.sh start` makes "
            "it one) and have the cluster's token in ~/.ray/auth_token; or hand the command to the cluster with "
            f"`launch/ray.sh submit` ({_first_line(error)})"
        ) from error
    try:
        yield ray
    finally:
        with _signals_stay_ours():
            ray.shutdown()


def resources(ray: Any) -> list[dict[str, float]]:
    """Returns what each living node has, as Ray counts it."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def _signals_stay_ours() -> Iterator[None]:
    """Restores the signal handlers that Ray replaces when it starts and ends."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Records SIGTERM, SIGUSR1 and SIGINT in the list that it yields. A second SIGINT interrupts at once."""
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        received.append(number)
        if received.count(signal.SIGINT) > 1:
            raise KeyboardInterrupt

    handlers = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run_ranks(ray: Any, start: Start, placement: Placement, received: list[int], is_done: Callable[[], bool]) -> int:
    """Runs a command as the ranks of all nodes, until all have ended; returns one exit code.

    Args:
        ray: the connected module, see `joined`.
        start: the command of each rank.
        placement: nodes and ranks.
        received: signals that the command got, see `signals_noted`.
        is_done: tells whether the ranks have done their work, so that a signal came too late to stop them.

    Raises:
        ValueError: when the nodes have no free resources.
        KeyboardInterrupt, SystemExit: after a signal, when all ranks have ended.
    """
    from ray.train import ControllerError, WorkerGroupError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": here, "max_concurrency": 100_000}
    coordinator = ray.remote(Coordinator).options(**options).remote(placement.nodes)
    error = _fit(_trainer(start, placement, coordinator), lambda: coordinator.stop.remote(grace_seconds()), received)
    try:
        addresses, codes = ray.get(coordinator.known.remote())
        ray.kill(coordinator)
    except ray.exceptions.RayError:
        addresses, codes = {}, {}
    if received and not is_done():
        _report_unsaved(codes, placement.nodes)
        raise_stopped(received)
    if isinstance(error, WorkerGroupError):
        for node, failure in sorted(error.worker_failures.items()):
            say(f"node {addresses.get(node, node)}: {_summary(failure)}")
    elif isinstance(error, ControllerError):
        raise ValueError(
            f"{placement} with a free CPU{' and GPUs' * (placement.gpus > 0)} each were not available within "
            f"{_PLACING_SECONDS} s ({_first_line(error.controller_failure)}); look at launch/ray.sh status"
        ) from error
    elif isinstance(error, ray.exceptions.RayError):
        say(f"Ray Train or its cluster is lost: {_first_line(error)}")
    elif error is not None:
        raise error
    return outcome(codes, placement.nodes)


def grace_seconds() -> float:
    """Returns the seconds that ranks have to save and end."""
    return float(os.environ.get(_GRACE, 60))


def _summary(failure: BaseException) -> str:
    """Returns the last line of a traceback, or the first line of a message."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return (lines[-1] if lines and lines[0].startswith("Traceback") else _first_line(failure))[:500]


def _report_unsaved(codes: Mapping[int, Sequence[int]], nodes: int) -> None:
    others = sorted({code for node in codes.values() for code in node} - STOPPED)
    if others or len(codes) < nodes:
        say(f"not all ranks saved: exit codes {others}, {nodes - len(codes)} nodes lost")


def raise_stopped(received: list[int]) -> NoReturn:
    """Raises what a stopped command ends with: `KeyboardInterrupt` after SIGINT, else `SystemExit` (75)."""
    if received[0] == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(STOPPED_EARLY)


def start_of(arguments: Sequence[str], run: Path, ranks: int) -> Start:
    """Returns what every node starts: Python with these arguments, in this directory.

    Args:
        arguments: of Python.
        run: directory that all nodes share, for the signs of life and locks of the ranks.
        ranks: per node.
    """
    return Start(
        arguments=tuple(arguments),
        directory=str(Path.cwd()),
        run=str(run.resolve()),
        environment=forwarded(os.environ),
        ranks=ranks,
        grace=grace_seconds(),
    )


def _trainer(start: Start, placement: Placement, coordinator: Any) -> Any:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    each = {"CPU": 1.0, **({"GPU": float(placement.gpus)} if placement.gpus else {})}
    # TorchTrainer is not used: its backend would create a process group in the workers, and ranks create their own.
    trainer = DataParallelTrainer(
        train_node,
        train_loop_config={"start": start, "coordinator": coordinator},
        scaling_config=ScalingConfig(
            num_workers=placement.nodes,
            use_gpu=placement.gpus > 0,
            resources_per_worker=each,
            placement_strategy="STRICT_SPREAD",
        ),
        run_config=RunConfig(
            name=_RAYS_OWN,
            storage_path=start.run,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
            logging_config=LoggingConfig(log_level="CRITICAL"),
        ),
    )
    # Ray Train's cleaner of placement groups needs the dashboard. Without one, every attempt ends 12 s late with an
    # error. Our placement groups belong to this process and end with it.
    callbacks: Callable[[], list[object]] = trainer._create_default_callbacks
    trainer._create_default_callbacks = lambda: [
        callback for callback in callbacks() if type(callback).__name__ != "PlacementGroupCleanerCallback"
    ]
    return trainer


def forwarded(command: Mapping[str, str]) -> dict[str, str]:
    """Selects the variables that ranks need. In a Ray job, OMP_NUM_THREADS is Ray's and is left out."""
    ours = {name: value for name, value in command.items() if name.startswith(_FORWARDED)}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in command:
        ours.pop("OMP_NUM_THREADS", None)
    return ours


def _fit(trainer: Any, stop: Callable[[], object], received: list[int]) -> Exception | None:
    """Runs Ray Train in another thread, while this one handles signals; returns the exception, if any."""
    failures: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    stopping = False
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        if received and not stopping:
            stopping = True
            stop()
    shutil.rmtree(Path(trainer.run_config.storage_path) / _RAYS_OWN, ignore_errors=True)
    return failures[0] if failures else None

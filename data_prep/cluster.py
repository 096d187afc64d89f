"""Ray: the one place where work is handed to processes.

Work is a function of the module level and a list of arguments. It runs on a private Ray that lives as long as the
`Cluster`, or on a running one by its address; started when first needed, so that a run with nothing to do pays nothing.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

# Results are small dictionaries; the text goes through files.
_OBJECT_STORE_BYTES = 80 * 2**20
_POLL_SECONDS = 0.25
_LONGEST_DIRECTORY = 24
_PR_SET_PDEATHSIG = 1


class Cluster:
    """Runs functions over tasks, some at a time.

    Args:
        address: `local` for a private Ray, else the address of a running cluster.
        workers: tasks at a time; None: as many as Ray has CPUs; 0: in this process, without Ray (for tests).
    """

    def __init__(self, address: str = "local", workers: int | None = None) -> None:
        self._address = address
        self._workers = workers
        self._temporary: Path | None = None
        self._ray: Any = None

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ray is not None:
            with _sigterm_stays_ours():
                self._ray.shutdown()
            self._ray = None
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def workers(self) -> int:
        """Tasks at a time."""
        if self._workers is not None:
            return self._workers
        if self._address == "local":
            return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, int(self._start().cluster_resources().get("CPU", 1)))

    def map(
        self, function: Callable[[Task], Result], tasks: Sequence[Task], tick: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[Task, Result]]:
        """Yields each task with its result, as they are done; calls `tick` a few times a second meanwhile.

        Raises:
            ValueError, OSError: the first that a task raised, as it was raised.
        """
        if self.workers == 0:
            for task in tasks:
                yield task, function(task)
                tick()
        elif tasks:
            yield from self._map_on_ray(function, tasks, tick)

    def _map_on_ray(
        self, function: Callable[[Task], Result], tasks: Sequence[Task], tick: Callable[[], None]
    ) -> Iterator[tuple[Task, Result]]:
        ray = self._start()
        remote = ray.remote(_guarded)
        waiting = iter(tasks)
        running: dict[Any, Task] = {}
        try:
            while True:
                while len(running) < self.workers and (task := next(waiting, None)) is not None:
                    running[remote.remote(function, task)] = task
                if not running:
                    return
                done, _ = ray.wait(list(running), timeout=_POLL_SECONDS)
                for reference in done:
                    result, error = ray.get(reference)
                    if error is not None:
                        raise error
                    yield running.pop(reference), result
                tick()
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _start(self) -> Any:
        if self._ray is not None:
            return self._ray
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Workers that load a tokenizer before forking children would otherwise warn about its threads.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)  # advice about tokens, which a private cluster does not need
        common = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
        with _sigterm_stays_ours():
            if self._address == "local":
                self._temporary = _short_directory()
                ray.init(
                    address="local",
                    num_cpus=self.workers,
                    num_gpus=0,
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    _temp_dir=str(self._temporary),
                    **common,
                )
            else:
                ray.init(address=self._address, runtime_env={"py_modules": _our_packages()}, **common)
        self._ray = ray
        return ray


@contextmanager
def _sigterm_stays_ours() -> Iterator[None]:
    """Puts the handler of SIGTERM back: Ray sets its own, which aborts with a trace, and leaves none when it ends."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as end:
        raise SystemExit(int(signal.SIGTERM)) from end  # a SIGTERM came while Ray started
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _short_directory() -> Path:
    """A temporary directory for Ray's sockets, whose paths may have no more than 107 bytes."""
    usual = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="ray-", dir=usual if len(usual) <= _LONGEST_DIRECTORY else "/tmp"))


def _our_packages() -> list[str]:
    """Directories of the packages that the machines of a running cluster need."""
    root = Path(__file__).parent.parent
    return [str(root / "configs"), str(root / "data_prep")]


def _guarded(function: Callable[[Task], Result], task: Task) -> tuple[Result | None, Exception | None]:
    """Errors meant for the user travel as values: Ray would wrap them with its own trace."""
    _end_with_parent()
    try:
        return function(task), None
    except (ValueError, OSError) as error:
        return None, error


@cache
def _end_with_parent() -> None:
    """Lets the system end this worker when Ray's daemon goes, which goes with a killed driver.

    By themselves workers may take a minute to notice, and write into a directory where the next run is at work.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

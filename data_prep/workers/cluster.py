"""Runs work on Ray. No other file hands work to processes.

Work is a function of the module level and a list of arguments. It runs on a private Ray that lives as long as the
`Cluster`, or on a running one by its address. Ray starts when it is first needed, so a run with nothing to do pays
nothing.

Workers and nodes may die at any time: their tasks are started again, and go on behind the units they committed
(`data_prep/workers/worker_deaths.py`).
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from data_prep.workers import worker_deaths
from data_prep.workers.private_ray import few_processes
from data_prep.workers.ray_token import private_token, token_file
from data_prep.workers.worker_deaths import Job, Progress, record_death
from data_prep.workers.worker_notes import Done, noted
from data_prep.workers.worker_process import Site, run_guarded, versions

Task = TypeVar("Task")
Result = TypeVar("Result")

# Results are small dictionaries; the text goes through files.
_OBJECT_STORE_BYTES = 80 * 2**20
_POLL_SECONDS = 0.25
_WIDTH_SECONDS = 5.0
# Notes are read at least a second apart, and so seldom that all of them make no more than this many reads a second.
_NOTES_PER_SECOND = 100.0
_LONGEST_DIRECTORY = 24
_NOTES = ".notes"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Cluster:
    """Runs functions over tasks, some at a time.

    Args:
        address: `local` for a private Ray, else the address of a running cluster.
        workers: tasks at a time; None: as many as Ray has CPUs; 0: in this process, without Ray (for tests).
        attempts: how often a task is tried whose workers die.
        directory: where the work's files lie, which all nodes must see; None: no notes are kept of what workers are at.
    """

    def __init__(
        self, address: str = "local", workers: int | None = None, attempts: int = 3, directory: Path | None = None
    ) -> None:
        self._address = address
        self._workers = workers
        self._attempts = attempts
        self._directory = directory
        self._notes = directory / _NOTES if directory else None
        self._site: Site | None = None
        self._temporary: Path | None = None
        self._ray: Any = None
        self._environment: dict[str, str] | None = None  # as it was found; Ray writes variables of its own into it
        self._asked, self._width = -_WIDTH_SECONDS, 1
        self._most = sys.maxsize  # tasks at a time, after memory ran out

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ray is not None:
            with _sigterm_stays_ours():
                self._ray.shutdown()
            self._ray = None
        if self._environment is not None:
            os.environ.clear()
            os.environ.update(self._environment)
            self._environment = None
        for directory in (self._temporary, self._notes):
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)

    @property
    def workers(self) -> int:
        """Number of tasks at a time; it grows when nodes join."""
        if self._workers is not None:
            return self._workers
        if self._address == "local":
            return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if time.monotonic() - self._asked > _WIDTH_SECONDS:
            self._width = max(1, int(self._start().cluster_resources().get("CPU", 1)))
            self._asked = time.monotonic()
        return self._width

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        tick: Callable[[Progress], None] = lambda progress: None,
    ) -> Iterator[tuple[Task, Result]]:
        """Yields each task with its result, as they are done; calls `tick` a few times a second meanwhile.

        Raises:
            ValueError, OSError: the first that a task raised, as it was raised.
            ValueError: when the workers of one task died `attempts` times.
        """
        progress = Progress(len(tasks))
        try:
            if self.workers == 0:
                yield from self._map_here(function, tasks, progress, tick)
            elif tasks:
                yield from self._map_on_ray(function, tasks, progress, tick)
        except OSError as error:
            if self._directory and error.errno in _FULL and not error.filename:
                raise OSError(error.errno, os.strerror(error.errno), str(self._directory)) from error
            raise

    @staticmethod
    def _map_here(
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        progress: Progress,
        tick: Callable[[Progress], None],
    ) -> Iterator[tuple[Task, Result]]:
        for task in tasks:
            with noted(None) as beat:
                result = function(task)
            progress.finish(beat.done)
            yield task, result
            tick(progress)

    def _map_on_ray(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        progress: Progress,
        tick: Callable[[Progress], None],
    ) -> Iterator[tuple[Task, Result]]:
        """Keeps `workers` tasks running until all are done.

        Example: tasks A B C D, two workers; the worker of B dies once:

            running A B      waiting C D      start A and B
            running B C      waiting D        A is done: yield it, start C
            running C B      waiting D        the worker of B died: B goes before those that wait
            running B D      waiting          C is done: yield it, start D
            then B and D are done
        """
        ray = self._start()
        # Ray's own retries would start a task that kills its worker again without a word.
        remote = ray.remote(max_retries=0)(run_guarded)
        waiting = (Job(task, self._notes and self._notes / f"{number:07d}") for number, task in enumerate(tasks))
        again: list[Job] = []  # their workers died
        running: dict[Any, Job] = {}
        self._most, looked = sys.maxsize, time.monotonic()
        try:
            while True:
                free = min(self.workers, self._most) - len(running)
                for job in self._next_jobs(again, waiting, free):
                    job.start()
                    running[remote.remote(function, job.task, job.notes, self._site)] = job
                if not running:
                    return
                for reference in ray.wait(list(running), timeout=_POLL_SECONDS)[0]:
                    job = running.pop(reference)
                    answer = self._answer(reference, job, len(running))
                    if answer is None:
                        again.append(job)
                    else:
                        progress.finish(answer[1])
                        yield job.task, answer[0]
                if time.monotonic() - looked > max(1.0, len(running) / _NOTES_PER_SECOND):
                    looked = time.monotonic()
                    self._look(running)
                    progress.look(running.values())
                tick(progress)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    @staticmethod
    def _next_jobs(again: list[Job], waiting: Iterator[Job], free: int) -> Iterator[Job]:
        """Up to `free` jobs: those whose workers died first, then new ones. Takes them out of both."""
        for _ in range(free):
            job = again.pop() if again else next(waiting, None)
            if job is None:
                return
            yield job

    def _answer(self, reference: Any, job: Job, others: int) -> tuple[Any, Done] | None:
        """The task's result and what it did; None when its worker died and it must start again.

        Args:
            reference: of Ray, to the result.
            job: whose result it is.
            others: tasks that run beside it; no more of them are started when memory ran out.

        Raises:
            ValueError, OSError: the task's own error, or a job that died too often.
        """
        try:
            result, error, done = self._ray.get(reference)
        except self._ray.exceptions.RayError as death:
            kind = self._kind_of_death(death, job)
        else:
            if error is None:
                return result, done
            if not isinstance(error, MemoryError):
                raise error
            kind = worker_deaths.MEMORY
        if kind == worker_deaths.MEMORY:
            self._most = max(1, others)
        record_death(job, kind, self._attempts)
        return None

    def _kind_of_death(self, error: Exception, job: Job) -> str:
        """How a worker died, from Ray's error; raises what is no death."""
        kinds = self._ray.exceptions
        if isinstance(error, kinds.RayTaskError):
            raise error  # an error of this program, with its trace
        if isinstance(error, kinds.OutOfMemoryError):
            return worker_deaths.MEMORY
        if isinstance(error, kinds.TaskCancelledError):
            return worker_deaths.HUNG
        if isinstance(error, kinds.RuntimeEnvSetupError):
            raise ValueError(f"a node could not be given this program's code: {error}") from error
        lost = (kinds.NodeDiedError, kinds.LocalRayletDiedError, kinds.ObjectLostError, kinds.RaySystemError)
        if isinstance(error, lost):
            return worker_deaths.NODE
        if isinstance(error, kinds.WorkerCrashedError):
            return worker_deaths.HUNG if job.hung else worker_deaths.CRASHED
        raise error

    def _look(self, running: dict[Any, Job]) -> None:
        """Reads the workers' notes and ends workers that are stuck in a document."""
        for reference, job in running.items():
            job.look()
            if job.stands and not job.hung:
                job.hung = True
                self._ray.cancel(reference, force=True)

    # ------------------------------------------------------------------------------------------------------------ start
    def _start(self) -> Any:
        if self._ray is not None:
            return self._ray
        self._environment = dict(os.environ)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Workers that load a tokenizer before forking children would otherwise warn about its threads.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        private_token(make=self._address == "local")
        if self._address != "local" and token_file().is_file():
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # as `launch/ray.sh` starts clusters
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)  # advice about tokens, which a private cluster does not need
        logging.getLogger("ray._private.worker").setLevel(logging.CRITICAL)  # dead workers: we say so ourselves
        if self._notes:
            self._notes.mkdir(parents=True, exist_ok=True)
        common = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
        with _sigterm_stays_ours():
            if self._address == "local":
                self._temporary = _short_directory()
                with few_processes():
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
                self._join(ray, common)
        self._ray = ray
        return ray

    def _join(self, ray: Any, common: dict[str, Any]) -> None:
        """Connects to a running cluster; the code of our packages travels there."""
        try:
            # Workers look for code first where the driver was: nowhere, so that they use what travels with it.
            with chdir("/"):
                ray.init(address=self._address, runtime_env={"py_modules": _our_packages()}, **common)
        except ConnectionError as error:
            raise ValueError(
                f"no Ray cluster answers at {self._address}: this machine must be one of its nodes (`launch/ray.sh "
                "start` makes it one) and have the cluster's token in ~/.ray/auth_token; or hand the command to the "
                f"cluster with `launch/ray.sh submit` ({str(error).splitlines()[0]})"
            ) from error
        except RuntimeError as error:
            if "Version mismatch" not in str(error):
                raise
            raise ValueError(
                f"the Ray cluster at {self._address} runs other versions than this machine: {error}"
            ) from error
        if self._notes:
            token = self._notes / f"token-{uuid.uuid4().hex}"
            token.touch()
            self._site = Site(token, versions(), str(Path.cwd()))


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
    root = Path(__file__).parents[2]
    return [str(root / "configs"), str(root / "data_prep")]

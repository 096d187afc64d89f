"""Settings for all tests, made before any of them imports torch, and what every test must leave as it found it."""

from __future__ import annotations

import os
import signal
import socket
import sys
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

# OpenMP threads that spin while they wait starve each other when tests share the cores with other work: on two busy
# cores a small training step took ten times longer.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Hundreds of processes start here. Without bytecode each would compile the project's modules anew, and this one all
# tests whose assertions pytest rewrites: twelve seconds in each process of a session.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A runner in the background of a shell ignores Ctrl-C, and so would every command that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

_SIGNALS = (
    signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGCHLD, signal.SIGVTALRM,
)  # fmt: skip
# Set by pytest for each test; by libraries, and for them, for good: they read them once, when they are imported.
_FREE_VARIABLES = (
    "PYTEST_CURRENT_TEST", "DS_ACCELERATOR", "HF_", "KMP_", "PYTORCH_NVML_", "RAY_", "TOKENIZERS_PARALLELISM",
    "TORCHINDUCTOR_", "TRITON_",
)  # fmt: skip
# Processes that serve this one until it ends: helpers of multiprocessing and of torch's compiler.
_SERVANTS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "compile_worker")
_ENDING_SECONDS = 10.0  # for processes that have been told to end


_listeners: weakref.WeakSet[socket.socket] = weakref.WeakSet()
_listen = socket.socket.listen


def _listen_and_be_known(place: socket.socket, *backlog: int) -> None:
    _listen(place, *backlog)
    _listeners.add(place)


# Sockets that listen are noted here, because asking the system for them takes ten milliseconds, twice for each test.
# Those of other languages are not seen: gloo's, in C++, stays as long as the process.
socket.socket.listen = _listen_and_be_known  # type: ignore[method-assign]


@dataclass(frozen=True)
class _ProcessState:
    """What belongs to the whole process, and so to the tests that come after."""

    signal_handlers: dict[str, object]
    variables: dict[str, str]
    directory: str

    @classmethod
    def now(cls) -> _ProcessState:
        handlers = {number.name: signal.getsignal(number) for number in _SIGNALS}
        return cls(handlers, dict(os.environ), str(Path.cwd()))

    def changes(self, after: _ProcessState) -> list[str]:
        """What is otherwise now, in words."""
        if self == after:
            return []
        pairs = (
            ("signal handler", self.signal_handlers, after.signal_handlers),
            ("variable", _watched(self.variables), _watched(after.variables)),
            ("directory", {"working directory": self.directory}, {"working directory": after.directory}),
        )
        return [
            f"{kind} {name}: {old.get(name)!r} became {new.get(name)!r}"
            for kind, old, new in pairs
            for name in sorted(old | new)
            if old.get(name) != new.get(name)
        ]

    def put_back(self) -> None:
        for number in _SIGNALS:
            handler = self.signal_handlers[number.name]
            if handler is not signal.getsignal(number) and handler is not None:
                signal.signal(number, handler)  # type: ignore[arg-type]
        before, after = _watched(self.variables), _watched(dict(os.environ))
        for name in after.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
        os.chdir(self.directory)


def _watched(variables: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if not name.startswith(_FREE_VARIABLES)}


def _children() -> set[int]:
    """Processes that this one started, ended ones too; the system keeps a list for each thread (proc(5))."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # there are none
        return set()
    found: set[int] = set()
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has ended
            found.update(map(int, (thread / "children").read_text(encoding="ascii").split()))
    return found


def _still_running(pids: set[int]) -> list[str]:
    """Command lines of those of the processes that go on, servants apart."""
    processes = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE and not any(
                name in " ".join(process.cmdline()) for name in _SERVANTS
            ):
                processes.append(process)
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(processes, _ENDING_SECONDS) if processes else ([], [])
    return [" ".join(process.cmdline())[:200] for process in alive if process.is_running()]


def _ports() -> dict[socket.socket, int]:
    """Ports on which Python's sockets of this process wait for connections."""
    open_ones = [place for place in _listeners if place.fileno() >= 0]
    return {place: place.getsockname()[1] for place in open_ones if place.family in (socket.AF_INET, socket.AF_INET6)}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fails a test that leaves handlers, variables, a working directory, processes or open ports to those after it."""
    before, children, ports = _ProcessState.now(), _children(), _ports()
    yield
    told = before.changes(_ProcessState.now())
    if told:
        before.put_back()
    if more := _children() - children:
        told += [f"process: {command}" for command in _still_running(more)]
    told += [f"port {port} is open" for place, port in _ports().items() if place not in ports]
    assert not told, "left behind: " + "; ".join(told)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """The name of the parameter in a test's name where its value is bytes, instead of the bytes.

    pytest would write them out. What `gzip` packs holds the time of day, so each process of pytest-xdist would then
    name the test otherwise, and no test would run.
    """
    return argname if isinstance(val, bytes) else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Under pytest-xdist (`-n 2 --dist loadfile`) a file's tests stay in one process, for they share fixtures.

    Those of `tests/distributed` stay together, for they share ranks.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return str(Path(file).parent) if "distributed" in Path(file).parts else file

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None

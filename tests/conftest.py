"""Settings for all tests, made before any of them imports torch, and what every test must leave as it found it."""

from __future__ import annotations

import gc
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

# OpenMP threads that spin while they wait starve each other when tests share the cores with other work: on two busy
# cores a small training step took ten times longer.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

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


def _process_state() -> dict[str, dict[str, object]]:
    """What belongs to the whole process, and so to the tests that come after."""
    return {
        "signal handler": {number.name: signal.getsignal(number) for number in _SIGNALS},
        "variable": {name: value for name, value in os.environ.items() if not name.startswith(_FREE_VARIABLES)},
        "directory": {"working directory": Path.cwd()},
    }


def _put_back(state: dict[str, dict[str, object]]) -> None:
    for number in _SIGNALS:
        handler = state["signal handler"][number.name]
        if handler is not signal.getsignal(number) and handler is not None:
            signal.signal(number, handler)  # type: ignore[arg-type]
    for name in set(os.environ) | set(state["variable"]):
        if name.startswith(_FREE_VARIABLES):
            continue
        if name in state["variable"]:
            os.environ[name] = str(state["variable"][name])
        else:
            del os.environ[name]
    os.chdir(str(state["directory"]["working directory"]))


def _children() -> set[int]:
    """Processes that this one started, ended ones too; the system keeps the list (proc(5)), so asking costs little."""
    lists = Path("/proc/self/task").glob("*/children")
    return {int(pid) for file in lists for pid in file.read_text(encoding="ascii").split()}


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


def _listening() -> dict[int, int]:
    """Ports on which this process waits for connections, with their descriptors."""
    found = psutil.Process().net_connections("tcp")
    return {place.laddr.port: place.fd for place in found if place.status == psutil.CONN_LISTEN}


def _left_open(before: dict[int, int]) -> list[int]:
    """Ports that Python's sockets have opened since; gloo's listener, in C++, stays as long as the process."""
    more = {port: descriptor for port, descriptor in _listening().items() if port not in before}
    if not more:
        return []
    sockets = [thing for thing in gc.get_objects() if issubclass(type(thing), socket.socket)]
    held = {thing.fileno() for thing in sockets}
    return sorted(port for port, descriptor in more.items() if descriptor in held)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fails a test that leaves handlers, variables, a working directory, processes or open ports to those after it."""
    before, children, ports = _process_state(), _children(), _listening()
    yield
    after = _process_state()
    told = [
        f"{kind} {name}: {values.get(name)!r} became {after[kind].get(name)!r}"
        for kind, values in before.items()
        for name in sorted(values | after[kind])
        if values.get(name) != after[kind].get(name)
    ]
    if told:
        _put_back(before)
    if more := _children() - children:
        told += [f"process: {command}" for command in _still_running(more)]
    told += [f"port {port} is open" for port in _left_open(ports)]
    assert not told, "left behind: " + "; ".join(told)

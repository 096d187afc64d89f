"""Runs one task inside a worker process of Ray, after checking that its machine fits the driver's."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from configs.common.versions import code_version
from data_prep.workers.worker_notes import Done, noted

Task = TypeVar("Task")
Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1
# A file system shared over a network may show a new file late.
_SHARED_SECONDS = 10.0
# Other versions of these write other bytes.
_LIBRARIES = ("pyarrow", "numpy", "tokenizers", "zstandard", "ftfy")


@dataclass(frozen=True)
class Site:
    """What a worker on another machine must have: the driver's files and the same versions."""

    token: Path  # a file that the driver wrote
    versions: dict[str, str]
    directory: str  # that relative paths mean


def run_guarded(
    function: Callable[[Task], Result], task: Task, notes: Path | None, site: Site | None
) -> tuple[Result | None, Exception | None, Done]:
    """Errors meant for the user travel as values: Ray would wrap them with its own trace."""
    _end_with_parent()
    try:
        if site:
            check_site(site.token, site.directory, tuple(site.versions.items()))
        with noted(notes, sync=site is not None, node=_node() if site else "") as beat:
            return function(task), None, beat.done
    except (ValueError, OSError, MemoryError) as error:
        return None, error, Done()


@cache
def _end_with_parent() -> None:
    """Lets the system end this worker when Ray's daemon goes, which goes with a killed driver.

    By themselves workers may take a minute to notice, and write into a directory where the next run is at work.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@cache
def _node() -> str:
    """This machine's name and address."""
    import ray

    return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"


@cache
def check_site(token: Path, directory: str, wanted_versions: tuple[tuple[str, str], ...]) -> None:
    """Once in every worker: this machine sees the driver's files and runs the same program.

    Raises:
        ValueError: naming the machine and what is wrong with it.
    """
    own = versions()
    for name, wanted in wanted_versions:
        if own[name] != wanted:
            raise ValueError(
                f"node {_node()} has {name} {own[name]}, the machine this was started on {wanted}; "
                "install the same environment on all nodes"
            )
    deadline = time.monotonic() + _SHARED_SECONDS
    while not token.exists():
        if time.monotonic() > deadline:
            raise ValueError(
                f"node {_node()} does not see {token.parent.parent}: the data directory must lie on a file system "
                "that all nodes share; choose another with data.directory or --out"
            )
        time.sleep(0.5)
    if Path(directory).is_dir():
        os.chdir(directory)  # relative paths of sources mean the same as on the driver


@cache
def versions() -> dict[str, str]:
    """Versions that must be the same on all nodes."""
    found = {"python": platform.python_version()} | {name: code_version(name) for name in ("data_prep", "configs")}
    return found | {name: version(name) for name in _LIBRARIES}

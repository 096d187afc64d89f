"""Locks files between processes: for run directories, prepared data and the ranks of a node.

The operating system releases a lock when the last process that has the file open ends, even by a crash. On a file
system without locks no process is refused, and the user must not start two.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from configs.safety.own_files import refuse_links

_POLL_SECONDS = 0.2


class Busy(ValueError):
    """Another process has the lock."""


@contextmanager
def locked(file: Path, busy: str, wait: float = 0.0, waiting: Callable[[], object] | None = None) -> Iterator[int]:
    """Holds the lock of a file; yields its descriptor, which child processes can inherit.

    The file is created if it is missing, and never written to. A link is not followed, so that a lock cannot open
    somebody else's file.

    Args:
        file: the lock; its directory must exist.
        busy: the error message when another process has the lock.
        wait: seconds to wait for that process; infinity waits without a limit.
        waiting: called once when the wait begins.

    Raises:
        Busy: another process has it.
        ValueError: it is a link or not a regular file.
    """
    descriptor = _open(file)
    try:
        deadline = time.monotonic() + wait
        while not _taken(descriptor):
            if time.monotonic() >= deadline:
                raise Busy(busy)
            if waiting is not None:
                waiting()
                waiting = None
            time.sleep(_POLL_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)


def _open(file: Path) -> int:
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{file} is a link, but a lock must be a regular file; remove the link") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{file} is not a regular file, so it cannot be a lock; remove it")
    return descriptor


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True


# ------------------------------------------------------------------------------------------------------- run directory
RUN_LOCK = ".lock"  # held by the command that uses a run directory
TRAINING_LOCK = ".training.lock"  # held by rank 0, which may outlive its launcher
_HELD = "REPLICA_RUN_HELD"  # the run directory that this process or its launcher has locked


@contextmanager
def held_run(run: Path) -> Iterator[None]:
    """Locks a run directory for one command. An environment variable tells the ranks it starts that they may enter.

    Raises:
        Busy: when another process uses it.
        ValueError: when it contains a link that leads out of it.
    """
    refuse_links(run)
    with locked(run / RUN_LOCK, _busy(run)):
        before = os.environ.get(_HELD)
        os.environ[_HELD] = str(run)
        try:
            yield
        finally:
            del os.environ[_HELD]
            if before is not None:
                os.environ[_HELD] = before


@contextmanager
def held_for_training(run: Path, grace: float) -> Iterator[None]:
    """Locks a run directory on rank 0, whichever command started training.

    The launcher of this process may already hold the run's lock. Rank 0 holds a second lock, because it may still be
    saving after its launcher was killed. A new start waits up to `grace` seconds for it.

    Raises:
        Busy: when another process uses it.
        ValueError: when it contains a link that leads out of it.
    """
    refuse_links(run)
    orphan = f"rank 0 of an earlier start still trains in {run}; it saves and ends by itself: run this again then"
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(run / RUN_LOCK, _busy(run)))
        except Busy:
            if os.environ.get(_HELD) != str(run):
                raise
        stack.enter_context(locked(run / TRAINING_LOCK, orphan, grace))
        yield


def _busy(run: Path) -> str:
    return f"another replica command uses {run}; wait for it, or choose another --out"

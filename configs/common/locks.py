"""Locks between processes: one kind, for run directories, prepared data and the ranks of a node.

The system lets go of a lock when the last process that has it open ends, however it ends. On a file system without
locks nobody is refused, and the user keeps order.
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
    """Holds the lock of a file, which is made where it is missing; yields its descriptor, for children to inherit.

    The file is never written to. A link is not followed, so that nobody's file is opened by way of a lock.

    Args:
        file: the lock; its directory must exist.
        busy: what is said when another process has it.
        wait: seconds to wait for that process; infinity: as long as it takes.
        waiting: called once when there is something to wait for.

    Raises:
        Busy: another process has it.
        ValueError: it is a link or no file.
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
            raise ValueError(f"{file} is a link, and a lock must be a file of its own; remove it") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{file} is no ordinary file, so it cannot be a lock; remove it")
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
RUN_LOCK = ".lock"  # of the command that works in a run directory
TRAINING_LOCK = ".training.lock"  # of rank 0, which may outlive its launcher
_HELD = "REPLICA_RUN_HELD"  # the run directory that this process, or the launcher above it, holds


@contextmanager
def held_run(run: Path) -> Iterator[None]:
    """Holds a run directory for one command; ranks that it starts know by their environment that it is theirs.

    Raises:
        Busy: when another process works there.
        ValueError: when something in it leads out of it.
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
    """Holds a run directory on rank 0, whichever command started training.

    The run's lock may be the launcher's of this very process. Rank 0 has a second one, because it may still be saving
    when its launcher was killed: a new start waits so many seconds (`grace`) for it.

    Raises:
        Busy: when another process works there.
        ValueError: when something in it leads out of it.
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
    return f"another replica command works in {run}; wait for it, or choose another --out"

"""Turns errors and signals into one message and an exit code, the same for every command line of the project.

Exit codes: 0 done, 1 a gate failed, 2 the user has something to fix, 70 a bug in Replica (with a traceback),
75 SIGUSR1, 130 Ctrl-C, 141 broken pipe, 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from configs.common.files import says_full
from configs.common.openmp import choose_wait_policy
from configs.safety.terminal import encodable_output, guarded_output

USER_ERROR = 2
BUG = 70  # EX_SOFTWARE: not 1, which says that a gate failed
STOPPED_EARLY = 75  # EX_TEMPFAIL: run the same command again
INTERRUPTED = 130
TERMINATED = 143
BROKEN_PIPE = 141
CONTINUES = "stopped; what is finished is kept, and the same command continues from there"
_OURS = {"configs", "data_prep", "pretrain", "eval", "launch"}


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Adds `--debug`, valid before and after a subcommand."""
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the full traceback of an error"
    )


# Signals that should have ended the command under way. Python drops the exception of a handler that happens to run in a
# destructor or in a callback of the garbage collector, so training asks once more before its first step.
_received: list[int] = []


def pending_signal() -> int:
    """Returns the first SIGTERM or SIGUSR1 that this command received, though it goes on; else 0."""
    return _received[0] if _received else 0


def run_command(command: Callable[[], int], debug: bool = False, interrupted: str = CONTINUES) -> int:
    """Runs a command and returns its exit code. A user's error becomes one line on standard error.

    SIGTERM and SIGUSR1 raise an exception in the command, so that it removes temporary files and child processes.
    Control characters in its output are escaped (`configs/safety/terminal.py`). Signal handlers, environment variables,
    working directory, warning filters and standard streams are restored afterwards: the caller may be a test or a
    notebook.
    """
    with as_found(), encodable_output(), guarded_output():
        if threading.current_thread() is threading.main_thread():
            _received.clear()
            signal.signal(signal.SIGTERM, _terminate)
            signal.signal(signal.SIGUSR1, _terminate)
        choose_wait_policy()
        return _exit_code(command, debug, interrupted)


def _exit_code(command: Callable[[], int], debug: bool, interrupted: str) -> int:
    try:
        code = command()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as end:
        # Libraries such as Ray install signal handlers that exit with the signal's number.
        if end.code == signal.SIGTERM:
            return TERMINATED
        raise
    except BrokenPipeError:
        # Python flushes stdout again at exit, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("error: the program that read this output has ended (broken pipe)", file=sys.stderr)
        return BROKEN_PIPE
    except Exception as error:
        message = explain(error)
        if debug or message is None:
            traceback.print_exc()
        if message is None:
            return BUG
        print(f"error: {message}", file=sys.stderr)
        return USER_ERROR
    except BaseException:  # a panic of a Rust library is not an `Exception`; uncaught, it would exit with 1
        traceback.print_exc()
        return BUG


@contextmanager
def as_found() -> Iterator[None]:
    """Restores signal handlers, environment, working directory and warning filters when the body ends."""
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    environment, directory = dict(os.environ), Path.cwd()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                # None: a C library set the handler, and Python cannot restore it
                if handler is not None and signal.getsignal(number) is not handler:
                    signal.signal(number, handler)
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
        if not _is_at(directory):
            os.chdir(directory)


def _is_at(directory: Path) -> bool:
    try:
        return Path.cwd() == directory
    except FileNotFoundError:  # the working directory was deleted
        return False


def explain(error: Exception) -> str | None:
    """Returns a message that names the cause and the fix; None for a bug in Replica."""
    text = str(error)
    if says_full(error):
        place = getattr(error, "filename", None)
        return (
            f"the disk is full{f' at {place}' if place else ''}{_disk(place)}; free some space or choose another "
            "directory, then run again: what is finished is kept"
        )
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] not in _OURS:
        return f"the Python package `{error.name}` is not installed; `make setup` installs all that is needed"
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"a network port is in use by another process ({text}); end that process or run again later"
    if isinstance(error, PermissionError):
        return f"no permission for {error.filename or text}; change its owner or mode, or choose another directory"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if (memory := _full_memory(error)) is not None:
        detail = " ".join(text.split())[:200] or "out of memory"
        return (
            f"{memory} is full ({detail}); lower train.micro_batch_size or set train.activation_checkpointing; "
            "`replica plan RECIPE` shows which settings fit, docs/troubleshooting.md has more remedies"
        )
    return text if isinstance(error, ValueError) else None


def _full_memory(error: Exception) -> str | None:
    """Names the memory that is full, if the error says so. Compares class names, since torch is not imported here."""
    if type(error).__name__ == "OutOfMemoryError":  # torch.OutOfMemoryError, a RuntimeError
        return "the GPU's memory"
    of_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return "this machine's memory" if of_cpu or isinstance(error, MemoryError) else None


def _disk(place: str | None) -> str:
    """Describes the file system of a path and its free space."""
    if not place:
        return ""
    path = Path(place).absolute()
    mount = next((parent for parent in (path, *path.parents) if parent.is_mount()), path)
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path)
    return f" (file system {mount}: {free.free / 1e9:.2f} of {free.total / 1e9:.2f} GB free)"


def _terminate(number: int, _frame: object) -> NoReturn:
    _received.append(number)
    sys.exit(STOPPED_EARLY if number == signal.SIGUSR1 else TERMINATED)

"""Exit codes and messages of every command line."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from configs.common.console import Console
from configs.common.exit_codes import (
    BROKEN_PIPE,
    BUG,
    INTERRUPTED,
    STOPPED_EARLY,
    TERMINATED,
    USER_ERROR,
    pending_signal,
    run_command,
)
from pretrain.signals import stop_requests


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


def raising(error: BaseException) -> int:
    def command() -> int:
        raise error

    return run_command(command)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("corpus.txt is empty; give one with text"), "error: corpus.txt is empty; give one with text\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "error: the disk is full at /a/b (file system "),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "error: the disk is full; free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "error: no permission for /a/b; "),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "/a/b"),
            "error: /a/b: No such file or directory\n",
        ),
        (OSError(errno.EADDRINUSE, "Address already in use"), "error: a network port is in use"),
        (ModuleNotFoundError("No module named 'ray'", name="ray"), "error: the Python package `ray` is not installed"),
        (
            OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 23 GiB"),
            "error: the GPU's memory is full (CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
            "error: this machine's memory is full ([enforce fail",
        ),
        (MemoryError(), "error: this machine's memory is full (out of memory); lower train.micro_batch_size"),
    ],
)
def test_what_the_user_can_fix_is_one_line_and_exit_code_2(
    error: Exception, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(error) == USER_ERROR
    said = capsys.readouterr().err
    assert said.startswith(message)
    assert said.count("\n") == 1


def test_debug_shows_the_traceback_too(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        raise ValueError("corpus.txt is empty")

    assert run_command(command, debug=True) == USER_ERROR
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.endswith("error: corpus.txt is empty\n")


@pytest.mark.parametrize("bug", [ZeroDivisionError(), ModuleNotFoundError("x", name="pretrain.nothing")])
def test_a_bug_of_ours_is_not_hidden(bug: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(bug) == BUG
    assert capsys.readouterr().err.startswith("Traceback")


def test_ctrl_c_says_that_running_again_continues(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(KeyboardInterrupt()) == INTERRUPTED
    assert "the same command continues" in capsys.readouterr().err


def test_a_library_that_exits_on_sigterm_in_its_own_way() -> None:
    assert raising(SystemExit(int(signal.SIGTERM))) == TERMINATED
    with pytest.raises(SystemExit):
        raising(SystemExit(3))


PROGRAM = """
import sys, time
from configs.common.exit_codes import run_command
def command():
    try:
        print("ready", flush=True)
        {body}
    finally:
        print("cleaned up", file=sys.stderr)
    return 0
sys.exit(run_command(command))
"""


def start(body: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM.format(body=body)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, TERMINATED), (signal.SIGINT, INTERRUPTED), (signal.SIGUSR1, STOPPED_EARLY)],
)
def test_a_signal_unwinds_the_command(number: signal.Signals, code: int) -> None:
    with start("time.sleep(60)") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, number)
        assert process.communicate(timeout=10)[1].startswith("cleaned up")
        assert process.returncode == code


def test_a_closed_pipe_is_one_line() -> None:
    with start("[print('x' * 1000) for _ in range(1000)]") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(timeout=10) == BROKEN_PIPE
    assert said.splitlines() == ["cleaned up", "error: the program that read this output has ended (broken pipe)"]


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_characters_that_the_output_lacks(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They become `?`; the command's own exit code stands, and the streams are left as they were."""
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)

    def command() -> int:
        print("3.758 – 3.826 é 三")
        Console().print("–")
        return 1

    assert run_command(command) == 1
    assert stream.errors == "strict"
    expected = {"latin-1": "3.758 ? 3.826 é ?\n?\n", "ascii": "3.758 ? 3.826 ? ?\n?\n"}
    stream.flush()
    assert written.getvalue().decode(encoding) == expected.get(encoding, "3.758 – 3.826 é 三\n–\n")


def test_a_signal_whose_exception_was_dropped_stops_training_all_the_same() -> None:
    """As when the handler runs in a destructor, while libraries are imported."""
    noted = []

    def command() -> int:
        with suppress(SystemExit):
            os.kill(os.getpid(), signal.SIGUSR1)
        with stop_requests() as stop:
            noted.append(stop())
        return 0

    assert run_command(command) == 0
    assert noted == [signal.SIGUSR1]
    assert run_command(pending_signal) == 0, "the next command begins anew"

"""Commands that are called as functions leave the process as they found it."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import configs.common.exit_codes
from configs.common.exit_codes import BUG, USER_ERROR, run_command

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("configs", "data_prep", "pretrain", "eval", "launch")
# Module -> arguments that end soon: with a mistake of the user, or a listing.
ENTRY_POINTS: dict[str, list[str]] = {
    "launch.cli": ["show", "nowhere.yaml"],
    "launch.training_finished": [],
    "launch.cluster.ray_train": ["nowhere.yaml"],
    "launch.cluster.ray_eval": ["nowhere"],
    "data_prep.__main__": ["run", "nowhere.yaml"],
    "eval.__main__": ["run", "nowhere"],
    "pretrain.train": ["--recipe", "nowhere.yaml"],
    "pretrain.planning.probe": ["--recipe", "nowhere.yaml", "--rows", "1", "--report", "nowhere.json"],
}


def state() -> tuple[object, ...]:
    """What a command must leave alone."""
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    streams = sys.stdin, sys.stdout, sys.stderr
    return handlers, dict(os.environ), Path.cwd(), list(warnings.filters), streams


def soil(directory: Path) -> int:
    """Does what commands and the libraries they call do to a process."""
    os.chdir(directory)
    os.environ["REPLICA_SOILED"] = "1"
    os.environ.pop("PATH", None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr
    return 0


@pytest.mark.parametrize("end", [0, ValueError("x"), ZeroDivisionError(), KeyboardInterrupt(), SystemExit(3)])
def test_the_command_puts_everything_back(
    end: int | BaseException, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state()

    def command() -> int:
        assert soil(tmp_path) == 0
        assert state() != before
        if isinstance(end, BaseException):
            raise end
        return end

    try:
        run_command(command)
    except SystemExit:
        assert isinstance(end, SystemExit)
    assert state() == before


def test_a_panic_of_a_library_is_a_bug_and_no_failed_gate(capsys: pytest.CaptureFixture[str]) -> None:
    class PanicException(BaseException):  # as PyO3's, which is no Exception
        pass

    def command() -> int:
        raise PanicException("regex")

    assert run_command(command) == BUG
    assert "PanicException: regex" in capsys.readouterr().err


def test_every_entry_point_is_known() -> None:
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    found = [file for file in files if "\nif __name__ ==" in file.read_text(encoding="utf-8")]
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in found}
    assert names - {"launch.docs"} == set(ENTRY_POINTS)  # which writes the reference of the project's own checkout


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_entry_point_puts_everything_back(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, *ENTRY_POINTS[name]])
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)  # so that the command chooses
    monkeypatch.setattr(configs.common.exit_codes, "explain", _soiling(tmp_path, configs.common.exit_codes.explain))
    module, before = importlib.import_module(name), state()
    called: Callable[[], int] = module.main
    code = run_command(called) if name == "launch.training_finished" else called()
    assert code == USER_ERROR
    assert state() == before


def _soiling(directory: Path, explain: Callable[[Exception], str | None]) -> Callable[[Exception], str | None]:
    def soiled(error: Exception) -> str | None:
        soil(directory)
        return explain(error)

    return soiled


BOUND = """
import subprocess, sys
from launch.processes.training import bound
child = "import time; print('started', flush=True); time.sleep(600)"
subprocess.Popen(bound([sys.executable, "-c", child])).wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl(2)")
def test_what_is_bound_to_a_process_ends_with_it() -> None:
    """No function runs between fork and exec: it would run in a copy of a process with threads."""
    with subprocess.Popen([sys.executable, "-c", BOUND], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "started\n"
        parent.kill()
        assert parent.stdout.read() == "", "the end of the file comes when the child has gone too"


def test_nothing_forks_this_process_to_run_python_in_the_copy() -> None:
    """Threads of the copy are gone and their locks are not; handlers go along, so that nobody could end it."""
    forking = re.compile(
        r"os\.fork\(|preexec_fn=|multiprocessing\.get_context\((\"fork\"|'fork'|\))|multiprocessing\.(Pool|Process)\("
    )
    files = [file for name in (*PACKAGES, "tests") for file in sorted((ROOT / name).rglob("*.py"))]
    assert [str(file) for file in files if file != Path(__file__) and forking.search(file.read_text())] == []

"""Locks: one holder, no links, nobody's file touched; and the run directory's between launchers and rank 0."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from configs.common.locks import RUN_LOCK, TRAINING_LOCK, Busy, held_for_training, held_run, locked
from data_prep.stages.pipeline import only_one
from launch.run_stages import working_in
from pretrain.session import run
from tests.parts.training_run import prepare_data, tiny_recipe

HOLD = "import sys; from pathlib import Path; from configs.common.locks import locked\n"
HOLD += "with locked(Path(sys.argv[1]), 'x'): print('held', flush=True); sys.stdin.read()"


def test_one_holder_and_the_next_when_it_has_ended(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with locked(file, "taken"):
        with pytest.raises(Busy, match="taken"), locked(file, "taken"):
            pass
        with pytest.raises(Busy), locked(file, "taken", wait=0.3):
            pass
    with locked(file, "taken"):
        pass


def test_waiting_ends_when_the_holder_does(tmp_path: Path) -> None:
    file, told = tmp_path / "lock", threading.Event()
    command = [sys.executable, "-c", HOLD, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == "held\n"

        def tell() -> None:
            told.set()
            assert holder.stdin is not None
            holder.stdin.close()

        with locked(file, "taken", float("inf"), tell):
            assert told.is_set()


def test_a_lock_is_no_way_to_another_file(tmp_path: Path) -> None:
    """A planted link must not make a command open, empty or change what it points at."""
    victim, file = tmp_path / "victim", tmp_path / "lock"
    victim.write_text("precious")
    file.symlink_to(victim)
    with pytest.raises(ValueError, match="is a link"), locked(file, "taken"):
        pass
    file.unlink()
    file.symlink_to(tmp_path / "new")
    with pytest.raises(ValueError, match="is a link"), locked(file, "taken"):
        pass
    assert not (tmp_path / "new").exists()
    file.unlink()
    file.hardlink_to(victim)
    with locked(file, "taken"):
        pass
    assert victim.read_text() == "precious"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match="not a regular file"), locked(file, "taken"):
        pass


def test_on_a_file_system_without_locks_nobody_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "lock", "taken"), locked(tmp_path / "lock", "taken"), only_one(tmp_path / "data"):
        pass


def test_rank_0_shares_the_lock_of_its_own_launcher_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held_run(tmp_path):
        second = held_for_training(tmp_path, grace=0)
        with held_for_training(tmp_path, grace=0), pytest.raises(Busy, match="rank 0 of an earlier start"), second:
            pass
        with monkeypatch.context() as patch:
            patch.delenv("REPLICA_RUN_HELD")
            with pytest.raises(Busy, match="another replica command uses"), held_for_training(tmp_path, grace=0):
                pass
            patch.setenv("REPLICA_RUN_HELD", str(tmp_path / "other"))
            with pytest.raises(Busy, match="another replica command uses"), held_for_training(tmp_path, grace=0):
                pass


def test_a_launcher_that_died_leaves_its_lock_to_rank_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLICA_RUN_HELD", str(tmp_path))
    launcher = held_run(tmp_path)
    with held_for_training(tmp_path, grace=0), pytest.raises(Busy, match="another replica command"), launcher:
        pass
    assert os.environ["REPLICA_RUN_HELD"] == str(tmp_path)


@pytest.mark.parametrize("lock", [RUN_LOCK, TRAINING_LOCK])
def test_training_is_refused_by_any_command_while_another_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: str
) -> None:
    monkeypatch.setenv("REPLICA_GRACE", "0")
    recipe = tiny_recipe(tmp_path, prepare_data(tmp_path / "data"))
    recipe.run_directory.mkdir()
    with locked(recipe.run_directory / lock, "taken"):
        with pytest.raises(Busy):
            run(recipe)
        if lock == RUN_LOCK:
            with pytest.raises(Busy), working_in(recipe):
                pass
    assert {path.name for path in recipe.run_directory.iterdir()} <= {RUN_LOCK, TRAINING_LOCK}

"""Evaluation on several ranks: how many, on which devices, how they are started, and what their ends mean."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from configs.common.exit_codes import USER_ERROR
from configs.schema.recipe import Recipe
from eval.results import ScoresBroken, ScoresFailed
from launch.cli import main
from launch.processes import evaluation
from launch.processes.evaluation import evaluation_ranks, score_run
from launch.processes.evaluation_rank import check_devices, device_of
from pretrain.checkpoint.choice import Choice
from pretrain.parallel.ranks import Ranks, is_launched
from tests.parts.fake_run import fake_recipe


def trained_on(ranks: int | None) -> Recipe:
    recipe = fake_recipe(Path("/nowhere"))
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"ranks": ranks})})


@pytest.mark.parametrize(
    ("trained", "asked", "gpus", "cores", "ranks"),
    [
        (None, None, 0, 8, 1),
        (None, None, 4, 8, 4),
        (2, None, 0, 8, 2),
        (8, None, 4, 64, 4),  # this machine has fewer than training had
        (8, None, 0, 2, 2),
        (8, 1, 0, 2, 1),
        (None, 3, 0, 2, 3),  # more ranks than cores are slow, and work
    ],
)
def test_as_many_ranks_as_training_had(
    monkeypatch: pytest.MonkeyPatch, trained: int | None, asked: int | None, gpus: int, cores: int, ranks: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert evaluation_ranks(trained_on(trained), asked) == ranks


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="--ranks 4 asks for 4 processes, but this machine has 2 GPUs"):
        evaluation_ranks(trained_on(None), 4)


def test_a_rank_of_a_launcher_starts_no_ranks(
    monkeypatch: pytest.MonkeyPatch, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["eval", str(run), "--ranks", "4"]) == USER_ERROR
    assert "leave --ranks out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("local_rank", "visible", "device"),
    [(0, 0, "cpu"), (3, 0, "cpu"), (0, 1, "cuda:0"), (3, 1, "cuda:0"), (3, 4, "cuda:3"), (1, 8, "cuda:1")],
)
def test_each_rank_has_the_gpu_of_its_number_or_the_only_one_it_sees(
    local_rank: int, visible: int, device: str
) -> None:
    assert str(device_of(Ranks(8 + local_rank, 16, local_rank, 4), visible)) == device


def test_ranks_without_a_gpu_of_their_own_are_refused() -> None:
    with pytest.raises(ValueError, match=r"4 ranks were started on .*, which has 2 GPUs"):
        device_of(Ranks(3, 4, 3, 4), 2)
    one, two = ("a", "cuda", "GPU-1"), ("a", "cuda", "GPU-2")
    check_devices([one, two, ("b", "cuda", "GPU-1")])
    check_devices([("a", "cpu", ""), ("a", "cpu", "")])
    with pytest.raises(ValueError, match="ranks 0 and 2 share a GPU of a"):
        check_devices([one, two, one])
    with pytest.raises(ValueError, match="rank 1 on b sees no GPU"):
        check_devices([one, ("b", "cpu", "")])


@pytest.mark.parametrize(
    ("variables", "launched"),
    [
        ({}, False),
        ({"RANK": "0", "WORLD_SIZE": "1"}, False),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0"}, True),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, False),  # the script of a job
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}, False),
    ],
)
def test_a_launcher_is_known_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], launched: bool
) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "RANK", "WORLD_SIZE"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_launched() == launched


# Stands for `replica eval`: notes its arguments and its place, then ends as its file says.
RANK = """
import json, os, pathlib, signal, sys, time
run, rank = pathlib.Path(sys.argv[1]), int(os.environ["RANK"])
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
(run / f"rank_{rank}.partial").write_text(json.dumps([sys.argv[1:], [os.environ[name] for name in names]]))
(run / f"rank_{rank}.partial").rename(run / f"rank_{rank}")
ends = json.loads((run / "ends").read_text())
end = ends[rank]
while not all((run / f"rank_{other}").exists() for other in range(len(ends))):
    time.sleep(0.01)
while "results" in ends and end != "results" and not (run / "results.json").exists():
    time.sleep(0.01)
while "killed" in ends and end != "killed" and not (run / "dying").exists():
    time.sleep(0.01)
if end == "results":
    (run / "results.json").write_text("{}")
elif end == "waits":
    time.sleep(60)
elif end == "killed":
    (run / "dying").touch()
    os.kill(os.getpid(), signal.SIGKILL)
else:
    sys.exit(end)
"""

# `replica eval` as it is, but for the scores.
RANK_THAT_SCORES = """
import os, sys
from launch.cli import main
from launch.commands import scoring
scoring._evaluate = lambda arguments: arguments.run / "results.json" if os.environ["RANK"] == "0" else None
print("said by a library")
sys.exit(main(["eval", *sys.argv[1:]]))
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rank.py").write_text(RANK)
    monkeypatch.setattr(evaluation, "COMMAND", [sys.executable, "-I", "-S", str(tmp_path / "rank.py")])
    monkeypatch.setenv("REPLICA_GRACE", "5")
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_the_path_is_printed_once(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the command, on standard output; not by rank 0 too, whose output a terminal shows beside it."""
    recipe = SimpleNamespace(run_directory=run)
    monkeypatch.setattr("configs.schema.recipe.load_run", lambda *_: recipe)
    monkeypatch.setattr("launch.processes.evaluation.evaluation_ranks", lambda *_: 2)
    monkeypatch.setattr(evaluation, "COMMAND", [sys.executable, "-c", RANK_THAT_SCORES])
    assert main(["eval", str(run)]) == 0
    said = capfd.readouterr()
    assert said.out == f"{run / 'results.json'}\n"
    assert said.err.count("results.json") == 0
    assert said.err.count("said by a library") == 2


def test_ranks_are_started_with_the_arguments_and_their_places(run: Path) -> None:
    (run / "ends").write_text('["results", 0]')
    choice = Choice(600)
    assert score_run(run, 2, ["evaluation.batch_size=3"], choice, again=True) == run / "results.json"
    for rank in (0, 1):
        words, place = json.loads((run / f"rank_{rank}").read_text())
        assert words == [str(run), "--step", "600", "--again", "evaluation.batch_size=3"]
        assert place == [str(rank), "2", str(rank), "2", "127.0.0.1"]


@pytest.mark.parametrize(
    ("ends", "error", "words"),
    [
        (["results", 2], ScoresFailed, r"2 ranks failed \(exit code 2, see above\)"),
        ([2, 2], ScoresFailed, "exit code 2"),
        ([70, 70], ScoresBroken, "exit code 70"),
        (["killed", 76], ScoresFailed, r"ended by signal 9, see above\); the same command goes on"),
        ([76, 76], ScoresFailed, r"exit code 76, see above\); the same command goes on"),
        (["waits", "killed"], ScoresFailed, "signal 9"),
    ],
)
def test_a_rank_that_fails_is_told_and_ends_the_others(
    run: Path, ends: list[object], error: type[Exception], words: str
) -> None:
    (run / "ends").write_text(json.dumps(ends))
    with pytest.raises(error, match=words) as raised:
        score_run(run, 2)
    assert raised.value.saved == ("results" in ends)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("code", "raised"), [(75, SystemExit), (143, SystemExit), (130, KeyboardInterrupt)])
def test_ranks_that_were_stopped_stop_the_command(run: Path, code: int, raised: type[BaseException]) -> None:
    (run / "ends").write_text(json.dumps([code, code]))
    with pytest.raises(raised) as stopped:
        score_run(run, 2)
    assert raised is KeyboardInterrupt or stopped.value.code == code  # type: ignore[attr-defined]


def test_a_command_that_is_stopped_ends_its_ranks(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "ends").write_text('["waits", "waits"]')
    started: list[subprocess.Popen[bytes]] = []

    def wait(processes: list[subprocess.Popen[bytes]], *_: object, **__: object) -> list[int]:
        started.extend(processes)
        raise SystemExit(143)

    monkeypatch.setattr(evaluation, "wait_for_ranks", wait)
    with pytest.raises(SystemExit):
        score_run(run, 2)
    assert [process.returncode for process in started] == [-signal.SIGTERM] * 2

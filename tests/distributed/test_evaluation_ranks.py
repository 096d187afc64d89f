"""Scores do not depend on ranks, on real processes over gloo; and what becomes of ranks that are killed or stopped."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.common.exit_codes import TERMINATED
from eval.items.store import read_items
from eval.reading.reader import LocalReader
from eval.results import Results, load_results
from eval.suite import evaluate
from pretrain.reliability.rank_heartbeat import LOST_RANK
from tests.distributed.groups import ROOT, RankGroups, start_ranks
from tests.parts.evaluation_run import TASKS, make_evaluation_run
from tests.parts.rank_processes import wait_until

pytestmark = pytest.mark.slow
BENCHMARK = [
    "evaluation.benchmarks.tasks=[replica_copa]",
    f"evaluation.benchmarks.include_path={TASKS}",
    "evaluation.benchmarks.limit=6",
]
# Name of a copy of the run -> ranks, and settings.
PLACES = {
    "one": (1, BENCHMARK),
    "two": (2, BENCHMARK),
    "four": (4, []),
    "divided": (2, [*BENCHMARK, "evaluation.divide_weights=true"]),
    "divided by four": (4, ["evaluation.divide_weights=true"]),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, rank_groups: RankGroups) -> Path:
    """A directory with a copy of one run for each place, scored there."""
    directory = tmp_path_factory.mktemp("evaluation")
    run = make_evaluation_run(directory)
    orders: dict[int, list[Path]] = {}
    for name, (ranks, overrides) in PLACES.items():
        shutil.copytree(run, directory / name)
        order = directory / f"{name}.json"
        order.write_text(json.dumps({"run": str(directory / name), "overrides": overrides}))
        orders.setdefault(ranks, []).append(order)
    evaluate(directory / "one", BENCHMARK, progress=False)
    for ranks in (2, 4):
        rank_groups.run(ranks, orders[ranks], "evaluate_many")
    return directory


def numbers(results: Results) -> dict[str, list[float]]:
    return {
        result.name: [-1.0 if value is None else value for value in (result.value, result.low, result.high)]
        for result in results.results
    }


def close(score: str, values: list[float]) -> Any:
    """Equal but for rounding; bits saved are differences of larger numbers."""
    return pytest.approx(values, rel=1e-6, abs=1e-4 if score.startswith("information/") else None)


@pytest.mark.parametrize("name", [name for name, (ranks, _) in PLACES.items() if ranks > 1])
def test_scores_do_not_depend_on_ranks(runs: Path, name: str) -> None:
    alone, here = load_results(runs / "one"), load_results(runs / name)
    wanted, found = numbers(alone), numbers(here)
    if PLACES[name][0] == 4:  # without the benchmark, whose libraries take each rank seconds to import
        wanted = {score: values for score, values in wanted.items() if not score.startswith("benchmark/")}
    assert found.keys() == wanted.keys() and len(found) > 5
    for score, values in wanted.items():
        assert found[score] == close(score, values), score
    assert [(one.title, one.text) for one in here.samples] == [(one.title, one.text) for one in alone.samples]
    for part in here.items:
        ours, theirs = (read_items(runs / where, part) for where in (name, "one"))
        assert [item.hash for item in ours.items()] == [item.hash for item in theirs.items()], part
    assert not (runs / name / "scores" / "partial").exists()


@pytest.fixture
def slow_ranks(runs: Path, tmp_path: Path) -> Iterator[tuple[Path, list[subprocess.Popen[str]]]]:
    """A copy of the run, and two ranks of `replica eval` that score its texts slowly and have answered some."""
    run = tmp_path / "run"
    shutil.copytree(runs / "run", run)
    command = [sys.executable, "-m", "tests.distributed.evaluate_slowly", str(run)]
    processes = start_ranks(2, command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: kept(run) >= 10)
        yield run, processes
    finally:
        for process in processes:
            process.kill()
            process.communicate(timeout=30)


def kept(run: Path) -> int:
    """Log-likelihoods in the journal."""
    files = list((run / "scores" / "partial").glob("perplexity-*.jsonl"))
    return len(files[0].read_text(encoding="utf-8").splitlines()) - 1 if files else 0


def test_after_a_kill_the_other_rank_ends_and_the_evaluation_goes_on_where_it_was(
    runs: Path, slow_ranks: tuple[Path, list[subprocess.Popen[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, processes = slow_ranks
    processes[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    _, errors = processes[0].communicate(timeout=60)
    assert processes[0].returncode == LOST_RANK and time.monotonic() - began < 30
    (message,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert f"pid {processes[1].pid}) is silent, last heard of in part" in message and "goes on" in message

    asked: list[int] = []
    score = LocalReader.score
    monkeypatch.setattr(LocalReader, "score", lambda self, windows, report=None: (
        asked.append(len(windows)), score(self, windows, report))[1])  # fmt: skip
    before = kept(run)
    evaluate(run, progress=False)
    went_on, asked[:] = sum(asked), []
    found, wanted = numbers(load_results(run)), numbers(load_results(runs / "one"))
    assert found == {score: close(score, wanted[score]) for score in found}
    shutil.rmtree(run / "scores")
    evaluate(run, progress=False)
    assert went_on == sum(asked) - before and before >= 10


def test_an_order_to_stop_one_rank_ends_all_in_order(slow_ranks: tuple[Path, list[subprocess.Popen[str]]]) -> None:
    run, processes = slow_ranks
    processes[1].send_signal(signal.SIGTERM)
    ends = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [TERMINATED, TERMINATED], ends
    assert not any("Traceback" in errors for _, errors in ends)
    assert kept(run) >= 10 and not (run / "results.json").exists()

"""`launch/ray.sh eval`, what needs no Ray: nodes and ranks, the command of each rank, and what exit codes become."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from configs.common.layout import RESULTS
from launch.cluster import ray_eval
from launch.cluster.ray_cluster import Placement
from launch.cluster.ray_node import Start
from tests.parts.fake_run import write_fake_run

CLUSTER: list[dict[str, float]] = [{"CPU": 4.0}, {"CPU": 4.0}, {"CPU": 0.0}]
Asked = Callable[..., Path]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Start, Placement]]:
    """Commands that reach a cluster of three nodes, one of them without a CPU."""
    found: list[tuple[Start, Placement]] = []

    @contextmanager
    def joined(address: str) -> Iterator[str]:
        assert address == "auto"
        yield "ray"

    def run_ranks(ray: Any, start: Start, placement: Placement, received: list[int], is_done: Any) -> int:
        found.append((start, placement))
        if "--again" in start.arguments:
            (Path(start.run).parent / RESULTS).write_text("new")
            assert is_done()
        return 76 if "--best" in start.arguments else 0

    monkeypatch.setattr(ray_eval, "joined", joined)
    monkeypatch.setattr(ray_eval, "resources", lambda ray: CLUSTER)
    monkeypatch.setattr(ray_eval, "run_ranks", run_ranks)
    for name in ray_eval.SETTINGS:
        monkeypatch.setenv(name, "as it is")
    return found


def test_each_rank_runs_the_command_of_every_launcher(tmp_path: Path, seen: list[tuple[Start, Placement]]) -> None:
    run = write_fake_run(tmp_path / "run", gates=[])
    words = ["--again", "evaluation.precision=fp32"]
    assert ray_eval.evaluate_on(run, words, "auto", None) == run / RESULTS
    ((start, placement),) = seen
    assert placement == Placement(2, 1, 0)
    assert start.arguments == ("-u", "-m", "launch.cli", "eval", str(run.resolve()), *words)
    assert Path(start.run) == run.resolve() / "scores", "apart from the locks and signs of life of training"


def test_a_single_rank_does_not_start_those_of_training(tmp_path: Path, seen: list[tuple[Start, Placement]]) -> None:
    run = write_fake_run(tmp_path / "run", gates=[])
    ray_eval.evaluate_on(run, [], "auto", 1)
    assert seen[0][1] == Placement(1, 1, 0) and seen[0][0].arguments[-2:] == ("--ranks", "1")


def test_what_cannot_be_is_said(tmp_path: Path, seen: list[tuple[Start, Placement]]) -> None:
    run = write_fake_run(tmp_path / "run", gates=[])
    with pytest.raises(ValueError, match="2 of the cluster's 3 nodes have 1 CPU, and 3 are needed"):
        ray_eval.evaluate_on(run, [], "auto", 3)
    lost = r"the evaluation on 2 nodes x 1 rank failed \(exit code 76, see above\); the same command goes on"
    with pytest.raises(ValueError, match=lost):
        ray_eval.evaluate_on(run, ["--best"], "auto", None)

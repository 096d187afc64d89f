"""`launch/ray.sh train`, what needs no Ray: how many nodes and ranks, exit codes, watching ranks, the node's lock."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.common.exit_codes import STOPPED_EARLY, TERMINATED, USER_ERROR
from configs.schema.recipe import Recipe
from launch.cluster import ray_node
from launch.cluster.ray_cluster import Placement, forwarded
from launch.cluster.ray_node import (
    Coordinator,
    check_shared,
    environment_of_ranks,
    only_start_here,
)
from launch.cluster.ray_train import place_ranks
from launch.processes import rank_group
from launch.processes.rank_group import outcome, rank_environment, wait_for_ranks
from pretrain.reliability.rank_heartbeat import LOST_RANK
from tests.parts.training_run import tiny_recipe

CPU, GPUS = {"CPU": 4.0}, {"CPU": 96.0, "GPU": 8.0}


def recipe(directory: Path, ranks: int | None = None, batch: int = 24) -> Recipe:
    return tiny_recipe(directory, directory, global_batch_size=batch, ranks=ranks)


@pytest.mark.parametrize(
    ("cluster", "ranks", "asked", "expected"),
    [
        ([CPU, CPU], None, None, Placement(2, 1, 0)),
        ([CPU, CPU, CPU], 2, 2, Placement(2, 2, 0)),
        ([{"CPU": 0.0}, CPU], None, None, Placement(1, 1, 0)),  # a head that is there for order only
        ([CPU, GPUS, GPUS, GPUS], None, None, Placement(3, 8, 8)),  # nodes without GPUs would hold the others up
        ([GPUS, {"CPU": 8.0, "GPU": 4.0}], None, 2, Placement(2, 4, 4)),
        ([GPUS, {"CPU": 8.0, "GPU": 4.0}], 6, None, Placement(1, 6, 6)),
    ],
)
def test_where_a_run_begins(
    tmp_path: Path, cluster: list[dict[str, float]], ranks: int | None, asked: int | None, expected: Placement
) -> None:
    assert place_ranks(recipe(tmp_path, ranks), cluster, asked, restart=False) == expected


def test_a_first_start_insists_and_a_restart_takes_what_is_left(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 of the cluster's 2 nodes have 1 CPU, and 3 are needed"):
        place_ranks(recipe(tmp_path), [CPU, CPU], 3, restart=False)
    assert place_ranks(recipe(tmp_path), [CPU, CPU], 3, restart=True).nodes == 2
    five = [CPU] * 5
    with pytest.raises(ValueError, match="global_batch_size 24 cannot be divided over 5 ranks"):
        place_ranks(recipe(tmp_path), five, None, restart=False)
    assert place_ranks(recipe(tmp_path), five, None, restart=True).nodes == 4, "24 sequences divide over 4"
    assert place_ranks(recipe(tmp_path), five, 3, restart=True).nodes == 3, "no more than was asked for"
    with pytest.raises(ValueError, match="0 of the cluster's 1 nodes have 1 CPU and 8 GPUs, and 1 are needed"):
        place_ranks(recipe(tmp_path, ranks=8), [{"CPU": 1.0, "GPU": 4.0}], None, restart=True)
    with pytest.raises(ValueError, match="cannot be divided over 5 ranks"):
        place_ranks(recipe(tmp_path, ranks=5), [CPU, CPU], None, restart=True)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({0: [0, 0], 1: [0, 0]}, 0),
        ({0: [STOPPED_EARLY], 1: [STOPPED_EARLY]}, STOPPED_EARLY),
        ({0: [-signal.SIGTERM], 1: [STOPPED_EARLY]}, STOPPED_EARLY),
        ({0: [-signal.SIGTERM, TERMINATED], 1: [0]}, TERMINATED),
        ({0: [LOST_RANK], 1: [-signal.SIGKILL]}, -signal.SIGKILL),
        ({0: [-signal.SIGTERM], 1: [LOST_RANK]}, LOST_RANK),
        ({0: [TERMINATED], 1: [70]}, 70),
        ({0: [70], 1: [USER_ERROR]}, USER_ERROR),
        ({0: [LOST_RANK]}, LOST_RANK),  # node 1 is gone
        ({0: [0]}, LOST_RANK),
        ({}, LOST_RANK),
    ],
)
def test_one_code_says_why_an_attempt_ended(codes: dict[int, list[int]], expected: int) -> None:
    assert outcome(codes, 2) == expected


def test_ranks_know_their_place() -> None:
    last = rank_environment(node=2, nodes=3, local=3, ranks=4)
    assert last == {"RANK": "11", "WORLD_SIZE": "12", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}


def test_variables_travel_from_the_command_and_rays_own_do_not() -> None:
    command = {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "7", "HOME": "/root"}
    ours = forwarded(command)
    assert ours == {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "4"}
    assert forwarded({**command, "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}) == {"NCCL_DEBUG": "INFO"}
    worker = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0,1"}
    assert environment_of_ranks(worker, {}) == {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert environment_of_ranks(worker, ours)["OMP_NUM_THREADS"] == "4"


def start(program: str) -> subprocess.Popen[bytes]:
    """A rank that says when it is ready."""
    rank = subprocess.Popen([sys.executable, "-c", f"import signal, sys, time\n{program}"], stdout=subprocess.PIPE)
    assert rank.stdout is not None
    rank.stdout.readline()
    return rank


READY = "print('ready', flush=True)"
SAVES = f"signal.signal(15, lambda *_: sys.exit(75)); {READY}; time.sleep(60)"
STUCK = f"signal.signal(15, signal.SIG_IGN); {READY}; time.sleep(60)"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_group, "POLL_SECONDS", 0.02)


def test_ranks_that_finish_are_let_finish() -> None:
    failures: list[float] = []
    ranks = [start(READY), start(f"{READY}; time.sleep(0.3)")]
    assert wait_for_ranks(ranks, lambda: None, failures.append, grace=9) == [0, 0]
    assert not failures


def test_an_order_to_stop_lets_ranks_save() -> None:
    asked = time.monotonic() + 0.2
    failures: list[float] = []
    ranks = [start(SAVES), start(SAVES)]
    assert wait_for_ranks(ranks, lambda: 9.0 if time.monotonic() > asked else None, failures.append, grace=0) == [
        75,
        75,
    ]


def test_a_failed_rank_ends_the_others_also_those_that_are_stuck() -> None:
    failures: list[float] = []
    ranks = [start(f"{READY}; sys.exit(3)"), start(SAVES), start(STUCK)]
    assert wait_for_ranks(ranks, lambda: None, failures.append, grace=0.5) == [3, 75, -signal.SIGKILL]
    assert set(failures) == {0.5}, "the other nodes are told"


def test_when_the_run_was_given_up_nobody_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_group, "_LOST_GRACE_SECONDS", 0.2)
    failures: list[float] = []
    ranks = [start(f"{READY}; sys.exit({LOST_RANK})"), start(STUCK)]
    assert wait_for_ranks(ranks, lambda: None, failures.append, grace=60) == [LOST_RANK, -signal.SIGKILL]
    assert set(failures) == {0.2}


def test_a_new_start_waits_for_ranks_of_the_last_one(tmp_path: Path) -> None:
    with only_start_here(str(tmp_path), "10.0.0.1", grace=1) as descriptor:
        rank = subprocess.Popen(["sleep", "0.5"], pass_fds=(descriptor,))
    began = time.monotonic()
    with only_start_here(str(tmp_path), "10.0.0.2", grace=0):
        assert time.monotonic() - began < 0.4, "another node"
    with only_start_here(str(tmp_path), "10.0.0.1", grace=9) as descriptor:
        assert rank.wait(0.2) == 0, "its ranks have ended"
        again = only_start_here(str(tmp_path), "10.0.0.1", grace=0.1)
        with pytest.raises(ValueError, match=r"ranks of an earlier start of .* still run on node 10\.0\.0\.1"), again:
            pass
    with only_start_here(str(tmp_path), "10.0.0.1", grace=0):
        pass


def test_a_file_system_without_locks_is_none_to_wait_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_start_here(str(tmp_path), "10.0.0.1", grace=0):
        pass


def test_a_node_that_does_not_see_the_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_node, "_SHARED_SECONDS", 0.1)
    check_shared(tmp_path, "10.0.0.1")
    with pytest.raises(ValueError, match=r"node 10\.0\.0\.1 does not see .*none: the run directory must"):
        check_shared(tmp_path / "none", "10.0.0.1")


def test_the_coordinator_carries_the_order_and_the_codes() -> None:
    async def story() -> None:
        coordinator = Coordinator(nodes=2)
        waiting = asyncio.create_task(coordinator.stopping())
        await coordinator.begin(1, "10.0.0.2")
        await coordinator.report(1, [75])
        await asyncio.sleep(0)
        assert not waiting.done()
        await coordinator.stop(5.0)
        await coordinator.stop(60.0)
        assert await asyncio.wait_for(waiting, 1) == 5.0
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(coordinator.all_ended(), 0.05)
        await coordinator.report(0, [0])
        await asyncio.wait_for(coordinator.all_ended(), 1)
        assert await coordinator.known() == ({1: "10.0.0.2"}, {1: [75], 0: [0]})

    asyncio.run(story())

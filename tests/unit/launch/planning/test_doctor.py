"""`replica doctor`: what its rows say about machines that would break a run, and two real ranks."""

from __future__ import annotations

import copy
import json
import socket
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from launch.planning.doctor import compare
from launch.processes.links import rounds

GPU = {"name": "H200", "bytes": 140 * 2**30}
REPORT: dict[str, Any] = {
    "node": "one", "rank": 0, "local_count": 1, "versions": {"torch": "2.13.0+cpu", "nccl": "2.29"}, "gpus": [GPU],
    "open_files": 65536, "shm_bytes": 2**34, "sees_run_directory": True,
    "disk": {"free": 9e9, "write": 300.0, "read": 900.0},
}  # fmt: skip


@pytest.fixture
def found() -> dict[str, Any]:
    """Two healthy nodes of one GPU each."""
    links = {"all_reduce_gb_per_s": 100.0, "all_reduce_ms": 0.1, "pairs": [{"ranks": [0, 1], "gb_per_s": 9, "ms": 1}]}
    other = {**copy.deepcopy(REPORT), "node": "two", "rank": 1}
    return {"ranks": [copy.deepcopy(REPORT), other], "clocks": [0.0, 0.002], "links": links}


def failing(found: dict[str, Any], verdict: str = "fail", **settings: Any) -> dict[str, str]:
    """What of the findings has this verdict."""
    return {row.what: row.value for row in compare(found, **settings) if row.verdict == verdict}


def test_healthy_nodes_pass(found: dict[str, Any]) -> None:
    assert {row.verdict for row in compare(found, nodes=2, need=10**9)} == {"ok"}


def test_what_breaks_a_run(found: dict[str, Any]) -> None:
    assert failing(found, nodes=3) == {"nodes": "2 reported, but --nodes expects 3"}
    assert "need 10.00 GB" in failing(found, need=10**10)["run directory on one"]
    second = found["ranks"][1]
    second["versions"]["torch"] = "2.11.0"
    second["sees_run_directory"] = False
    second["gpus"] = []
    second["open_files"] = 200
    second["shm_bytes"] = 2**20
    found["clocks"][1] = -40.0
    assert failing(found) == {
        "torch": "differs between ranks: 2.11.0, 2.13.0+cpu",
        "devices": "1 ranks on two, but 0 GPUs",
        "run directory on two": "not shared: a file of rank 0 does not appear there",
        "clock skew": "40000.0 ms",
        "open files": "200 (ulimit -n)",
        "/dev/shm free": "1 MiB",
    }
    second["disk"] = {"error": "/run: Read-only file system"}
    assert failing(found)["run directory on two"] == "/run: Read-only file system"


def test_what_is_only_doubtful(found: dict[str, Any]) -> None:
    found["clocks"][1] = 2.0
    found["links"]["pairs"] += [{"ranks": [0, number], "gb_per_s": 90, "ms": 1} for number in (2, 3, 4)]
    for report in found["ranks"]:
        report["versions"]["torch"] = "2.99"
    warned = failing(found, "warn")
    assert warned["4 pairs of ranks"].endswith("slowest 9.00 GB/s, 1.00 ms between ranks 0 and 1")
    assert warned["torch"].startswith("2.99, but tested with 2.")
    assert set(warned) == {"4 pairs of ranks", "torch", "clock skew"}
    assert not failing(found)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_all_pairs_meet_once_and_nobody_twice_in_a_round(count: int) -> None:
    met = []
    for couples in rounds(count):
        ranks = [rank for pair in couples for rank in pair]
        assert len(ranks) == len(set(ranks))
        met += couples
    assert sorted(met) == list(combinations(range(count), 2))


@pytest.mark.slow
def test_two_ranks_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = str(Path(__file__).parents[4] / "configs" / "demo.yaml")
    words = [
        "doctor",
        recipe,
        "--out",
        str(tmp_path),
        "--ranks",
        "2",
        "--quick",
        "--json",
        str(tmp_path / "found.json"),
    ]
    assert main(words) == 0
    assert "nothing will break the run" in capfd.readouterr().out
    content = json.loads((tmp_path / "found.json").read_text())
    assert [report["rank"] for report in content["ranks"]] == [0, 1]
    assert all(report["sees_run_directory"] for report in content["ranks"])
    assert content["links"]["pairs"][0]["ranks"] == [0, 1] and content["links"]["pairs"][0]["gb_per_s"] > 0
    assert abs(content["clocks"][1]) < 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


def test_a_taken_port_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**place, "MASTER_PORT": str(taken.getsockname()[1])}.items():
            monkeypatch.setenv(name, value)
        assert main(["doctor"]) == 1
    assert "fail  the ranks cannot reach each other: [Errno 98] Address already in use" in capsys.readouterr().out

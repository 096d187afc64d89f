"""The private Ray of data preparation: it listens on all interfaces, and answers nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from data_prep.workers.cluster import Cluster

JOIN = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); print('joined')"


def joins(address: str, token: str | None) -> bool:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-c", JOIN, address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return "joined" in done.stdout


@pytest.mark.slow
@pytest.mark.chaos
def test_strangers_are_turned_away(tmp_path: Path) -> None:
    with Cluster(workers=1, directory=tmp_path) as cluster:
        assert list(cluster.map(abs, [-1])) == [(-1, 1)]
        address = ray.get_runtime_context().gcs_address
        token = Path("~/.ray/auth_token").expanduser()
        assert not token.is_file() or not token.stat().st_mode & 0o077
        own = os.environ.get("RAY_AUTH_TOKEN") or Path("~/.ray/auth_token").expanduser().read_text(encoding="ascii")
        assert joins(address, own.strip()), "who has the token can join, or the others fail for another reason"
        assert not joins(address, None)
        assert not joins(address, "0" * 64)

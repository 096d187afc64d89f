"""The token of Ray's daemons, with which anybody runs code through them, is for its owner alone."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.workers.ray_token import _make, private_token, token_file

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_a_token_is_made_for_its_owner_alone(home: Path) -> None:
    private_token(make=False)
    assert not token_file().exists()
    private_token(make=True)
    assert mode(token_file()) == 0o600 and mode(home / ".ray") == 0o700
    token = token_file().read_text()
    assert re.fullmatch("[0-9a-f]{64}", token)
    private_token(make=True)
    _make(token_file())  # another process did so at the same moment
    assert token_file().read_text() == token
    assert [path.name for path in (home / ".ray").iterdir()] == ["auth_token"]


@pytest.mark.parametrize("make", [True, False])
def test_a_token_that_others_can_read_no_longer_can_be(home: Path, make: bool) -> None:
    (home / ".ray").mkdir()
    token_file().write_text("0" * 64)
    token_file().chmod(0o644)
    private_token(make)
    assert mode(token_file()) == 0o600 and token_file().read_text() == "0" * 64


@pytest.mark.parametrize(
    ("name", "value"), [("RAY_AUTH_TOKEN", "x"), ("RAY_AUTH_TOKEN_PATH", "/x"), ("RAY_AUTH_MODE", "disabled")]
)
def test_none_is_made_where_none_is_wanted(home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    private_token(make=True)
    assert not token_file().exists()


def test_a_home_that_cannot_be_written_to_is_rays_to_complain_of(home: Path) -> None:
    (home / ".ray").write_text("no directory")
    private_token(make=True)


def test_clusters_look_after_it_before_ray_does() -> None:
    text = (ROOT / "data_prep" / "workers" / "cluster.py").read_text(encoding="utf-8")
    assert text.index("private_token(make=") < text.index("        import ray\n")


# Stands in for `ray`: makes a token as Ray does, under the umask, and starts nothing.
FAKE_RAY = """#!/usr/bin/env bash
if [ "$1" = get-auth-token ] && [ ! -e ~/.ray/auth_token ]; then
    mkdir -p ~/.ray
    echo token >~/.ray/auth_token
fi
"""


@pytest.mark.parametrize("words", [["start"], ["start", "--address", "h:1"]])
@pytest.mark.parametrize("there", [True, False])
def test_the_launcher(home: Path, words: list[str], there: bool) -> None:
    (home / "launch").mkdir()
    shutil.copy(ROOT / "launch" / "ray.sh", home / "launch")
    (home / "bin").mkdir()
    (home / "bin" / "ray").write_text(FAKE_RAY)
    (home / "bin" / "python").symlink_to(sys.executable)
    (home / "bin" / "ray").chmod(0o755)
    if there:
        (home / ".ray").mkdir()
        token_file().write_text("token\n")
        token_file().chmod(0o644)
    environment = {**os.environ, "PATH": f"{home / 'bin'}:/usr/bin:/bin"}
    command = ["bash", "-c", 'umask 022; exec bash "$@"', "x", str(home / "launch" / "ray.sh"), *words]
    subprocess.run(command, env=environment, capture_output=True, check=True)
    if there or len(words) == 1:
        assert mode(token_file()) == 0o600 and token_file().read_text() == "token\n"

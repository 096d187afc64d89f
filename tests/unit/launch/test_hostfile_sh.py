"""`launch/hostfile.sh` over ssh (real, and a stand-in), with a stand-in for DeepSpeed: hosts start and end together."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from configs.schema.train import Watch
from pretrain.phases import Phase
from pretrain.reliability.rank_heartbeat import LOST_RANK, RankHeartbeat

ROOT = Path(__file__).resolve().parents[3]
HOSTS = ("head", "second", "third")
# As sshd does it: the words after the host go to a shell, as one string.
SSH = """#!/bin/sh
[ "$1 $2" = "-F config" ] || exit 9
while [ "$1" != second ] && [ "$1" != third ]; do shift; done
shift
exec sh -c "$*"
"""
# Notes how it was called, and stays until it is told to end, or, where it is told to, fails when all have begun.
DEEPSPEED = """#!/usr/bin/env bash
node=0
for word in "$@"; do [ "$last" != --node_rank ] || node=$word; last=$word; done
trap 'touch calls/$node.ended; exit 75' TERM
printf '[%s]' "$MASTER_ADDR" "$NCCL_DEBUG" "${@:2}" >calls/$node.partial
mv calls/$node.partial calls/$node
for _ in $(seq 200); do
    [ ! -e calls/go ] || exit 0
    if [ "$REPLICA_FAILS" = "$node" ] && [ -e calls/0 ] && [ -e calls/1 ] && [ -e calls/2 ]; then exit 2; fi
    sleep 0.05
done
"""
TRAIN = ("my recipe.yaml", "--trust", "my code", "a=[b, 'c']")
# Whether the last checkpoint is there.
DONE = "#!/bin/sh\n[ -e calls/go ] || exit 75\n"


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.chaos)])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory to start from; `real`: sshd on a port of loopback, with keys that are thrown away."""
    place = tmp_path / "a place"
    (place / "launch").mkdir(parents=True)
    (place / "calls").mkdir()
    shutil.copy(ROOT / "launch" / "hostfile.sh", place / "launch")
    programs = {"ssh": SSH, "deepspeed": DEEPSPEED, "replica": "#!/bin/sh\necho run\n", "python": DONE}
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (place / "hosts").write_text("".join(f"{host} slots=2\n" for host in HOSTS))
    if request.param == "stand-in":
        yield place
        return
    (tmp_path / "bin" / "ssh").unlink()
    with serving_ssh(place):
        yield place


@contextmanager
def serving_ssh(place: Path) -> Iterator[None]:
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/bin")
    if sshd is None or shutil.which("ssh-keygen") is None:
        pytest.skip("sshd is not installed here (Debian and Ubuntu: apt-get install openssh-server)")
    keys = place.parent
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {keys}/host_key\nAuthorizedKeysFile {keys}/key.pub\n"
    (keys / "sshd").write_text(f"{options}StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin prohibit-password\n")
    hosts = f"Host second third\nHostName 127.0.0.1\nPort {port}\nIdentityFile {keys}/key\nLogLevel ERROR\n"
    (place / "config").write_text(f"{hosts}StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen([sshd, "-D", "-e", "-f", str(keys / "sshd")], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 20
        while subprocess.run(["ssh", "-F", "config", "second", "true"], cwd=place, check=False).returncode:
            assert server.poll() is None and time.monotonic() < deadline, server.communicate(timeout=5)
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.communicate(timeout=10)


def start(place: Path, fails: str = "", words: Sequence[str] = TRAIN) -> subprocess.Popen[str]:
    """On the first of three hosts; `fails`: the host whose launcher ends with 2."""
    command = [
        "bash",
        str(place / "launch" / "hostfile.sh"),
        "hosts",
        *words,
    ]
    environment = {
        "PATH": f"{place.parent / 'bin'}:/usr/bin:/bin",
        "REPLICA_SSH": "ssh -F config",
        "REPLICA_GRACE": "5",
    }
    environment |= {"NCCL_DEBUG": "INFO  $x", "REPLICA_FAILS": fails}
    return subprocess.Popen(command, cwd=place, env=environment, text=True, stderr=subprocess.PIPE)


def wait_for(place: Path, suffix: str = "") -> None:
    deadline = time.monotonic() + 20
    while not all((place / "calls" / f"{number}{suffix}").exists() for number in range(3)):
        assert time.monotonic() < deadline, sorted(place.glob("calls/*"))
        time.sleep(0.02)


def test_every_host_gets_the_words_as_they_were_written(place: Path) -> None:
    with start(place) as process:
        wait_for(place)
        (place / "calls" / "go").touch()
        assert process.communicate(timeout=20)[1] == ""
    assert process.returncode == 0
    for number in range(3):
        said = (place / "calls" / str(number)).read_text()
        assert said.startswith("[head][INFO  $x]") and f"[--node_rank][{number}]" in said, said
        assert said.endswith("[--recipe][my recipe.yaml][--out][run][--trust][my code][a=[b, 'c']]"), said


def test_when_one_host_fails_the_others_end(place: Path) -> None:
    with start(place, fails="1") as process:
        said = process.communicate(timeout=20)[1]
    assert "a host ended with exit code 2: ending the others" in said
    assert process.returncode == 2
    assert (place / "calls" / "0.ended").exists() and (place / "calls" / "2.ended").exists()


def test_a_launcher_whose_rank_does_not_answer_is_not_waited_for(place: Path) -> None:
    """Ranks of another host gave the run up; a sign of life of an earlier start says nothing."""
    (place / "run").mkdir()
    stopped = RankHeartbeat(place / "run", Watch(), rank=1, ranks=3)
    stopped.phases.enter(Phase.ENDED)
    stopped._write()
    with start(place) as process:
        wait_for(place)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        stopped._write()
        said = process.communicate(timeout=40)[1]
    assert process.returncode == LOST_RANK and "ranks have given the run up" in said, said
    assert not list((place / "run" / "ranks").glob(".started*"))
    wait_for(place, ".ended")


def test_when_the_command_is_killed_all_hosts_end(place: Path) -> None:
    with start(place) as process:
        wait_for(place)
        process.kill()
        wait_for(place, ".ended")


@pytest.mark.parametrize(("scored", "code"), [(True, 0), (False, 75)])
def test_an_evaluation_is_done_when_its_results_are_new(place: Path, scored: bool, code: int) -> None:
    """DeepSpeed's launcher also reports success after it has lost ranks."""
    stage = place / "run" / "stages" / "sft"
    stage.mkdir(parents=True)
    for name in ("recipe.yaml", "results.json"):
        (stage / name).touch()
    with start(place, words=("eval", "run:sft", "--again", "evaluation.samples.prompts=[a b]")) as process:
        wait_for(place)
        if scored:
            (stage / "results.json").touch()
        (place / "calls" / "go").touch()
        said = process.communicate(timeout=20)[1]
    assert process.returncode == code, said
    words = (place / "calls" / "1").read_text()
    assert words.endswith(
        "[--no_local_rank][--module][launch.cli][eval][run/stages/sft][--again][evaluation.samples.prompts=[a b]]"
    )
    assert not list((stage / "scores" / "ranks").glob(".started*"))


def test_an_evaluation_needs_a_run(place: Path) -> None:
    with start(place, words=("eval", "elsewhere")) as process:
        said = process.communicate(timeout=20)[1]
    assert process.returncode == 2 and "there is no run directory elsewhere" in said

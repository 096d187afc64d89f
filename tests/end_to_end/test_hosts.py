"""`launch/hostfile.sh` on one host and on two hosts (network namespaces), without and with ssh; they die."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from test_two_nodes import Machines, two_machines

from pretrain.checkpoint.manifest import newest
from tests.parts.rank_processes import LAUNCHER, SCRIPT, last_step, launchers, ranks, wait_until
from tests.parts.training_run import ROOT, metric_lines, prepare_data, write_recipe

SCRIPT_FILE = str(ROOT / "launch" / "hostfile.sh")
STEPS = 150
SETTINGS = {"steps": STEPS, "checkpoint": {"every": 10}, "validation": {"every": 10_000}}


@pytest.mark.chaos
def test_a_killed_launcher_is_no_success_and_leaves_nobody(tmp_path: Path) -> None:
    """DeepSpeed's own command ends with 0 here, while its rank goes on."""
    recipe = write_recipe(tmp_path / "recipe.yaml", prepare_data(tmp_path / "data"), **{**SETTINGS, "steps": 100_000})
    (tmp_path / "hosts").write_text("localhost slots=1\n")
    command = [SCRIPT_FILE, "--node-rank", "0", str(tmp_path / "hosts"), str(recipe)]
    environment = {**os.environ, "MASTER_PORT": "29731", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        wait_until(lambda: last_step(tmp_path / "run") >= 12)
        left = ranks(process.pid)
        launchers(process.pid)[0].kill()
        said = process.communicate(timeout=100)[1]
    assert process.returncode not in (0, None), said
    assert "ending what DeepSpeed's launcher left here" in said and "training is not finished" in said
    assert left and not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in left)


@pytest.fixture
def machines() -> Iterator[Machines]:
    """Two hosts; nothing of Ray's is started there."""
    with two_machines(Path("/nowhere")) as made:
        yield made


def start(machines: Machines, directory: Path, recipe: Path) -> list[subprocess.Popen[str]]:
    """Trains on both hosts, one rank each."""
    hosts = directory / "hosts"
    hosts.write_text("".join(f"{address} slots=1\n" for address in machines.addresses))
    options = ("GLOO_SOCKET_IFNAME=eth0", "OMP_NUM_THREADS=1", "REPLICA_GRACE=20", SCRIPT_FILE, "--node-rank")
    return [
        machines.command(number, "env", *options, str(number), str(hosts), str(recipe), "train.watch.timeout_seconds=8")
        for number in (0, 1)
    ]


def processes(machines: Machines, host: int, word: str) -> list[psutil.Process]:
    """Processes of a host with this word in their command line."""
    found = subprocess.run(["ip", "netns", "pids", machines.names[host]], capture_output=True, text=True, check=True)
    here = []
    for pid in found.stdout.split():
        with suppress(psutil.NoSuchProcess):
            one = psutil.Process(int(pid))
            words, name = one.cmdline(), one.name()
            if "env" in name or "bash" in name or any(part.endswith("bin/deepspeed") for part in words):
                continue
            if any(part.endswith(word) for part in words) and (LAUNCHER in words) == (word == LAUNCHER):
                here.append(one)
    return here


def cut_the_link(machines: Machines) -> None:
    subprocess.run(["ip", "-n", machines.names[1], "link", "set", "eth0", "down"], check=True)


def mend_the_link(machines: Machines) -> None:
    subprocess.run(["ip", "-n", machines.names[1], "link", "set", "eth0", "up"], check=True)


FAULTS: dict[str, Callable[[Machines], object]] = {
    "rank killed": lambda machines: processes(machines, 1, SCRIPT)[0].kill(),
    "launcher killed": lambda machines: processes(machines, 1, LAUNCHER)[0].kill(),
    "rank stopped": lambda machines: processes(machines, 1, SCRIPT)[0].send_signal(signal.SIGSTOP),
    "link cut": cut_the_link,
}


def survive(fault: str, machines: Machines, directory: Path) -> None:
    """Both hosts give up, nobody stays behind, and the same commands go on to the losses of one undisturbed rank."""
    recipe = write_recipe(directory / "recipe.yaml", prepare_data(directory / "data"), **SETTINGS)
    run = directory / "run"
    commands = start(machines, directory, recipe)
    try:
        wait_until(lambda: last_step(run) >= 25)
        FAULTS[fault](machines)
        for command in commands:
            said = command.communicate(timeout=150)
            assert command.returncode not in (0, None), said
        assert not processes(machines, 0, SCRIPT) and not processes(machines, 1, SCRIPT)
        mend_the_link(machines)
        for command in (again := start(machines, directory, recipe)):
            said = command.communicate(timeout=150)
            assert command.returncode == 0, said
        commands += again
    finally:
        for command in commands:
            command.kill()
    last = newest(run)
    assert last is not None and last.step == STEPS
    assert sorted(metric_lines(run, "train/loss")) == list(range(1, STEPS + 1))


@pytest.mark.chaos
def test_a_rank_is_killed_on_the_second_host(machines: Machines, tmp_path: Path) -> None:
    survive("rank killed", machines, tmp_path)


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "rank killed"])
def test_other_faults_of_the_second_host(machines: Machines, tmp_path: Path, fault: str) -> None:
    survive(fault, machines, tmp_path)


SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin:/sbin")


def start_sshd(machines: Machines, directory: Path) -> str:
    """sshd on the second host, with keys that are thrown away; returns the command that reaches it."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("sshd is not installed here (Debian and Ubuntu: apt-get install openssh-server)")
    Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)], check=True)
    options = {
        "ListenAddress": machines.addresses[1], "Port": "2222", "HostKey": directory / "host", "UsePAM": "no",
        "AuthorizedKeysFile": directory / "user.pub", "StrictModes": "no", "PidFile": "none",
        "PermitRootLogin": "prohibit-password", "PasswordAuthentication": "no",
    }  # fmt: skip
    (directory / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    machines.command(1, SSHD, "-D", "-e", "-f", str(directory / "sshd_config"))
    ssh = f"ssh -p 2222 -i {directory / 'user'} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    wait_until(lambda: machines.command(0, *ssh.split(), machines.addresses[1], "true").wait(20) == 0, 20)
    return f"{ssh} -o LogLevel=ERROR"


def over_ssh(machines: Machines, directory: Path, ssh: str, *settings: str) -> subprocess.Popen[str]:
    """`launch/hostfile.sh` on the first host, for both."""
    hosts = directory / "hosts"
    hosts.write_text("".join(f"{address} slots=1\n" for address in machines.addresses))
    options = ("GLOO_SOCKET_IFNAME=eth0", "OMP_NUM_THREADS=1", "REPLICA_GRACE=20", f"REPLICA_SSH={ssh}")
    return machines.command(0, "env", *options, SCRIPT_FILE, str(hosts), str(directory / "recipe.yaml"), *settings)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_two_hosts_over_ssh_and_the_first_command_is_killed(machines: Machines, tmp_path: Path) -> None:
    """With `kill -9` nobody can tell the others: they end because the connection does, and save before."""
    ssh = start_sshd(machines, tmp_path)
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    write_recipe(recipe, prepare_data(tmp_path / "data"), **{**SETTINGS, "steps": 50_000})
    command = over_ssh(machines, tmp_path, ssh)
    wait_until(lambda: last_step(run) >= 25)
    assert processes(machines, 0, SCRIPT) and processes(machines, 1, SCRIPT), "a rank on each host"
    command.kill()
    wait_until(lambda: not processes(machines, 0, SCRIPT) and not processes(machines, 1, SCRIPT), 60)
    last = newest(run)
    assert last is not None and last.step == last_step(run), "saved when it was told to end"
    steps = last_step(run) + 20
    write_recipe(recipe, tmp_path / "data", **{**SETTINGS, "steps": steps})
    said = (again := over_ssh(machines, tmp_path, ssh)).communicate(timeout=150)
    assert again.returncode == 0, said
    assert sorted(metric_lines(run, "train/loss")) == list(range(1, steps + 1))
    last = newest(run)
    assert last is not None and len(list(last.directory.glob("weights-*-of-00002.safetensors"))) == 2
    done = (refused := over_ssh(machines, tmp_path, ssh, "train.stepz=3")).communicate(timeout=60)
    assert refused.returncode == 2 and "did you mean `train.steps`" in done[1], done

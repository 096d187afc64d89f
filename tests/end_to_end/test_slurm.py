"""`launch/slurm.sh` under a real Slurm: two nodes on this machine, started and stopped by the test itself."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from configs.common.files import read_json
from pretrain.checkpoint.manifest import newest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "slurm.sh"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo")
SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
JOB_SECONDS = 240

CONFIGURATION = """\
ClusterName=local
SlurmctldHost=localhost
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.sock
CryptoType=crypto/munge
SlurmctldPort={ports[0]}
SlurmctldPidFile={directory}/slurmctld.pid
SlurmctldLogFile={directory}/slurmctld.log
StateSaveLocation={directory}/state
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmdLogFile={directory}/slurmd-%n.log
SlurmdSpoolDir={directory}/spool-%n
SlurmdParameters=config_overrides
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
KillWait=5
NodeName=one NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} RealMemory=1000 State=UNKNOWN
NodeName=two NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=debug Nodes=one,two Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]
    finally:
        for item in sockets:
            item.close()


class Cluster:
    """munged, slurmctld and two slurmd in the foreground of processes that `close` ends."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {**os.environ, "PATH": SBIN, "SLURM_CONF": str(directory / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Writes the configuration, starts the daemons and waits until both nodes are idle."""
        user = pwd.getpwuid(os.getuid()).pw_name
        cpus = max(1, (os.cpu_count() or 2) // 2)
        text = CONFIGURATION.format(user=user, directory=self.directory, ports=free_ports(3), cpus=cpus)
        (self.directory / "slurm.conf").write_text(text, encoding="utf-8")
        (self.directory / "cgroup.conf").write_text(self._cgroup(), encoding="utf-8")
        (self.directory / "state").mkdir()
        key = self.directory / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        munge = {"socket": "munge.sock", "key-file": "munge.key", "pid-file": "munge.pid", "log-file": "munge.log"}
        munge["seed-file"] = "munge.seed"
        self._daemon("munged", "-F", "-f", *(f"--{name}={self.directory / file}" for name, file in munge.items()))
        self.until(lambda: (self.directory / "munge.sock").exists(), "munged made no socket")
        self._daemon("slurmctld", "-D", "-i")
        for node in ("one", "two"):
            (self.directory / f"spool-{node}").mkdir()
            self._daemon("slurmd", "-D", "-N", node)
        self.until(lambda: self.ask("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2", "the nodes never came up")

    def _cgroup(self) -> str:
        version = re.search(r"(\d+)\.(\d+)", self.ask("slurmd", "-V"))
        assert version is not None
        newer = (int(version[1]), int(version[2])) >= (23, 2)
        return "CgroupPlugin=disabled\n" if newer else "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nConstrainCores=no\n"

    def _daemon(self, *command: str) -> None:
        with (self.directory / f"{command[0]}-output.log").open("ab") as log:
            self._daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def until(self, holds: object, complaint: str, seconds: float = 30) -> None:
        """Waits until something holds; fails with the daemons' logs when it does not in time."""
        assert callable(holds)
        deadline = time.monotonic() + seconds
        while not holds():
            logs = "\n".join(f"{p.name}: {p.read_text(errors='replace')[-800:]}" for p in self.directory.glob("*.log"))
            assert time.monotonic() < deadline, f"{complaint}\n{logs}"
            time.sleep(0.2)

    def ask(self, *command: str) -> str:
        """Standard output of a Slurm command."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False).stdout

    def submit(self, project: Path, *arguments: str) -> tuple[str, str]:
        """Submits `launch/slurm.sh` from `project`, waits for its end; returns (state and exit code, its log)."""
        return self.outcome(project, self.begin(project, *arguments))

    def begin(self, project: Path, *arguments: str) -> str:
        """Submits from `project`; returns the job's number."""
        command = ["sbatch", "--parsable", *arguments]
        done = subprocess.run(command, env=self.environment, cwd=project, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def hurry(self, job: str) -> None:
        """Lets a requeued job start soon; by itself it waits until the credential of its last start ran out (120 s).

        At once would be too early: slurmd refuses a credential of the second in which it revoked the last one.
        """
        self.until(lambda: "Reason=BeginTime" in self.ask("scontrol", "show", "job", job), "no requeue", JOB_SECONDS)
        self.ask("scontrol", "update", f"JobId={job}", "StartTime=now+4seconds")

    def outcome(self, project: Path, job: str) -> tuple[str, str]:
        """Waits for the job's end; returns (state and exit code, its log)."""
        try:
            self.until(lambda: not self.ask("squeue", "-h", "-j", job).strip(), "the job does not end", JOB_SECONDS)
        finally:
            self.ask("scancel", job)
        shown = self.ask("scontrol", "show", "job", job)
        state = " ".join(re.findall(r"(?:JobState|ExitCode)=\S+", shown))
        return state, (project / f"replica-{job}.log").read_text(encoding="utf-8")

    def close(self) -> None:
        """Ends the daemons, the jobs' shepherds included."""
        self.ask("scancel", "--user", pwd.getpwuid(os.getuid()).pw_name)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A two-node Slurm; skips where its programs are not installed."""
    missing = [name for name in NEEDED if shutil.which(name, path=SBIN) is None]
    if missing:
        pytest.skip(f"Slurm is not installed here (missing: {', '.join(missing)})")
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as directory:
        made = Cluster(Path(directory))
        try:
            made.start()
            yield made
        finally:
            made.close()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory to submit from: this checkout, with the environment the tests run in."""
    directory = tmp_path / "project"
    directory.mkdir()
    for name in ("configs", "data_prep", "pretrain", "eval", "launch"):
        (directory / name).symlink_to(ROOT / name)
    (directory / ".venv").symlink_to(sys.prefix)
    return directory


STEPS = 600
LONG = ("train.steps=4000", "train.checkpoint.every=20", "train.validation.every=100000", "train.log_every=5")


def reached(run: Path, step: int) -> bool:
    """Whether a checkpoint of this step or a later one lies there."""
    latest = run / "checkpoints" / "latest"
    return latest.is_file() and int(latest.read_text(encoding="utf-8").strip().removeprefix("step_")) >= step


@pytest.mark.slow
def test_from_raw_text_over_the_queue_to_a_report(
    cluster: Cluster, project: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    """Two nodes; the signal before the time limit is sent by hand, because limits are whole minutes."""
    run = tmp_path / "run"
    command = ("--nodes=2", "launch/slurm.sh", str(tiny_recipe), "--out", str(run))
    job = cluster.begin(project, *command, f"train.steps={STEPS}", *LONG[1:])
    cluster.until(lambda: reached(run, 20), "no checkpoint", JOB_SECONDS)
    cluster.ask("scancel", "--batch", "--signal=USR1", job)
    cluster.hurry(job)
    saved = (run / "checkpoints" / "latest").read_text(encoding="utf-8").strip()
    assert int(saved.removeprefix("step_")) % 20, "the step at hand was saved"
    state, log = cluster.outcome(project, job)
    assert state == "JobState=COMPLETED ExitCode=0:0", log
    assert log.count("training on 2 nodes x 1 ranks") == 2
    assert log.count("back to the queue") == 1 and "evaluation on 2 nodes x 1 ranks" in log
    checkpoint = (run / "checkpoints" / "latest").read_text(encoding="utf-8").strip()
    assert checkpoint == f"step_{STEPS:08d}", log
    pieces = sorted(file.name for file in (run / "checkpoints" / checkpoint).glob("weights-*"))
    assert pieces == [f"weights-0000{rank}-of-00002.safetensors" for rank in (0, 1)], "both nodes trained together"
    assert (run / "report" / "index.html").is_file()
    assert read_json(run / "results.json")["checkpoint"]["step"] == STEPS


def test_a_cancelled_job_does_not_go_back_to_the_queue(cluster: Cluster, project: Path, tmp_path: Path) -> None:
    """Whatever step runs: here a stand-in for `replica data`, which sleeps."""
    (project / ".venv").unlink()
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / ".venv" / "bin" / "python").symlink_to(sys.executable)
    begun = tmp_path / "begun"
    stand_in = f"case $1 in show) echo {tmp_path}/run ;; *) touch {begun}; exec sleep 300 ;; esac"
    fake(project / ".venv" / "bin", "replica", stand_in)
    job = cluster.begin(project, "--nodes=2", "launch/slurm.sh", "recipe.yaml")
    cluster.until(begun.exists, "it did not begin", JOB_SECONDS)
    cluster.ask("scancel", job)
    state, log = cluster.outcome(project, job)
    assert state.startswith("JobState=CANCELLED"), log
    assert "data on one" in log and "back to the queue" not in log


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_the_time_limit_itself(cluster: Cluster, project: Path, prepared: Path, tmp_path: Path) -> None:
    """Slurm may send the signal up to a minute before the time that it was asked for, so the limit is two minutes."""
    run = tmp_path / "run"
    limit = ("--time=2", "--signal=B:USR1@15", "--nodes=2")
    steps = ("train.steps=100000", "train.checkpoint.every=100000", *LONG[2:])
    job = cluster.begin(project, *limit, "launch/slurm.sh", str(prepared), "--out", str(run), *steps)
    for _ in range(3):  # on a busy machine the first slice may end before its first step
        cluster.hurry(job)
        if first := newest(run):
            break
    assert first is not None, (project / f"replica-{job}.log").read_text(encoding="utf-8")
    cluster.until(lambda: newest(run) != first, "the second slice saved nothing", JOB_SECONDS)
    cluster.ask("scancel", job)
    state, log = cluster.outcome(project, job)
    assert state.startswith("JobState=CANCELLED"), log
    assert log.count("time is nearly up: saving") >= 2


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_node_that_dies_under_its_step(cluster: Cluster, project: Path, prepared: Path, tmp_path: Path) -> None:
    """The step's shepherd and its rank on the second node are killed at once; nobody tells srun."""
    run = tmp_path / "run"
    steps = ("train.steps=400", *LONG[1:])
    submitted = ("--nodes=2", "--export=ALL,REPLICA_GRACE=5", "launch/slurm.sh", str(prepared), "--out", str(run))
    job = cluster.begin(project, *submitted, *steps)
    cluster.until(lambda: reached(run, 60), "no checkpoint", JOB_SECONDS)
    place = {"SLURMD_NODENAME": "two", "SLURM_JOB_ID": job}
    ranks = [
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if "pretrain/train.py" in (process.info["cmdline"] or []) and place.items() <= process.info["environ"].items()
    ]
    assert ranks
    for process in {ranks[0].parent(), *ranks}:
        assert process is not None
        process.kill()
    cluster.hurry(job)
    state, log = cluster.outcome(project, job)
    assert state == "JobState=COMPLETED ExitCode=0:0", log
    assert "back to the queue (restart 1)" in log


def test_a_failing_job_passes_its_exit_code_on(cluster: Cluster, project: Path, tiny_recipe: Path) -> None:
    state, log = cluster.submit(project, "--nodes=2", "launch/slurm.sh", str(tiny_recipe), "train.stepz=3")
    assert state == "JobState=FAILED ExitCode=2:0", log
    assert "did you mean `train.steps`" in log


def fake(directory: Path, name: str, text: str) -> None:
    """An executable that stands in for a Slurm command."""
    file = directory / name
    file.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    file.chmod(0o755)


def test_refuses_to_run_on_one_node_when_two_were_asked_for(project: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    fake(bin_directory, "scontrol", "echo one; echo two")
    fake(bin_directory, "srun", "echo one")  # whatever is asked for, one process on one node starts
    environment = {
        **os.environ,
        "PATH": f"{bin_directory}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "one,two",
        "SLURM_SUBMIT_DIR": str(project),
    }
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tiny_recipe)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: 2 nodes were asked for, but processes start on 1 only\n"


def test_outside_slurm_it_says_how_to_submit() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(["bash", str(SCRIPT), "x"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "submit it with: sbatch" in done.stderr

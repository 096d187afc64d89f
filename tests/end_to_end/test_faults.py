"""Workers that are killed, run out of memory or stand still: on a real Ray of two workers."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_data_prep import make_corpus, make_recipe, shard_hashes

from configs.common.files import read_json, write_text
from data_prep import __main__ as command_line
from data_prep.stages.pipeline import prepare_inline
from data_prep.workers import worker_deaths
from data_prep.workers.cluster import Cluster
from data_prep.workers.stage import Stage
from data_prep.workers.time_limit import Guard, TooSlow
from data_prep.workers.worker_deaths import Progress
from data_prep.workers.worker_notes import current

DOCUMENTS = 30
Task = tuple[Stage, str, str]  # stage, unit, what goes wrong at its document 17


def write_unit(task: Task) -> int:
    """Copies the unit's documents but those left out; the number of processes that tried."""
    stage, unit, fault = task
    tries = len(list(stage.directory.glob(f"{unit}.try-*")))
    (stage.directory / f"{unit}.try-{tries}").touch()
    left: list[str] = []
    with Guard(stage, unit, "book.jsonl.gz", 0.5) as guard:
        for number in range(DOCUMENTS):
            document = f"document {number} of {unit}"
            if not guard.next(number, len(document)):
                guard.keep_aside(document.encode())
                continue
            try:
                with guard.limit:
                    if number == 17 and (not fault.endswith("once") or tries == 0):
                        go_wrong(fault.removesuffix(" once"))
            except TooSlow:
                continue
            guard.rest()
            left.append(document)
    write_text(stage.directory / unit, "\n".join(left))
    stage.commit(unit, {"files": guard.files})
    return tries + 1


def go_wrong(fault: str) -> None:
    """As the worst of documents do."""
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "segfault":
        ctypes.string_at(0)
    elif fault == "memory":
        resource.setrlimit(resource.RLIMIT_AS, (2**33, resource.getrlimit(resource.RLIMIT_AS)[1]))
        bytearray(2**34)
    elif fault == "stand still":
        ctypes.CDLL(None).sleep(1000)  # in C: no signal of Python's gets through
    elif fault == "loop":
        count = 0
        while True:
            try:
                count += len("x")
            except Exception:
                continue
    elif fault == "wait":
        time.sleep(3)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # workers import this file
        with Cluster(workers=2, directory=tmp_path_factory.mktemp("data")) as made:
            made._start()  # before the first test, to which its processes would be left behind
            yield made


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    made = Stage(tmp_path / "stage", {})
    made.begin()
    return made


def expected(unit: str, without: int | None = None) -> str:
    return "\n".join(f"document {number} of {unit}" for number in range(DOCUMENTS) if number != without)


@pytest.mark.parametrize("fault", ["kill once", "memory once", "loop", "kill", "segfault", "memory", "stand still"])
def test_one_bad_document(
    cluster: Cluster,
    stage: Stage,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if fault == "stand still":  # the others end by themselves; on a busy machine so short a grace would end them first
        monkeypatch.setattr(worker_deaths, "GRACE_SECONDS", 0.5)
    tasks: list[Task] = [(stage, "good", "nothing"), (stage, "bad", fault), (stage, "last", "nothing")]
    tries = {unit: count for (_, unit, _), count in cluster.map(write_unit, tasks)}
    assert tries == {"good": 1, "last": 1, "bad": 2 if fault.endswith("once") else 1 if fault == "loop" else 3}
    left_out = None if fault.endswith("once") else 17
    assert (stage.directory / "bad").read_text() == expected("bad", left_out)
    assert (stage.directory / "last").read_text() == expected("last")
    said = capsys.readouterr().err
    if fault != "loop":
        assert "book.jsonl.gz document 17; its task is started again (try 2 of 3)" in said
    if left_out and fault != "loop":
        assert "for the second time; this document is left out (reason: crashed)" in said
        assert read_json(stage.unit_file("bad", ".excluded")) == [17]
        kept = stage.directory / "excluded" / "bad-00000017"
        assert kept.read_text() == "document 17 of bad"
        unit = stage.unit("bad")
        assert unit is not None
        assert list(unit["files"]) == ["excluded/bad-00000017"]


def die_elsewhere(task: Stage) -> None:
    """Outside of any document."""
    current().enter(task.unit_file("unit", ""), "book.jsonl.gz")
    os.kill(os.getpid(), signal.SIGKILL)


def test_death_after_death_ends_the_run(cluster: Cluster, stage: Stage) -> None:
    with pytest.raises(ValueError, match=r"a worker died \(killed or crashed\) at book.jsonl.gz, 3 times without"):
        list(cluster.map(die_elsewhere, [stage]))


def test_progress_knows_what_it_waits_for(cluster: Cluster, stage: Stage) -> None:
    seen: list[tuple[int, str]] = []

    def tick(progress: Progress) -> None:
        if progress.standing and progress.standing.note:
            seen.append((progress.running_documents, progress.standing.note.where))

    list(cluster.map(write_unit, [(stage, "slow", "wait")], tick))
    assert (18, "book.jsonl.gz document 17") in seen


# ------------------------------------------------------------------------------------------------------------ full disk
@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB; skips where none may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_corpus(tmp_path / "corpus")
    monkeypatch.setattr(command_line, "prepare", prepare_inline)
    whole = make_recipe(tmp_path / "corpus", tmp_path / "whole")
    assert command_line.main(["run", str(whole)]) == 0
    file = make_recipe(tmp_path / "corpus", small_disk)
    capsys.readouterr()
    for size in ("1m", "2m", "3m"):
        subprocess.run(["mount", "-o", f"remount,size={size}", str(small_disk)], check=True)
        kept = len(list(small_disk.rglob("*.parquet")))
        code = command_line.main(["run", str(file)])
        error = capsys.readouterr().err
        if code == 0:
            break
        assert "error: the disk is full at" in error
        assert f"(file system {small_disk}: 0.00 of 0.00 GB free)" in error
        assert not [path for path in small_disk.rglob("*") if path.name.endswith(".partial")]
        assert len(list(small_disk.rglob("*.parquet"))) >= kept > 0 or size == "1m"
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert command_line.main(["run", str(file)]) == 0
    assert shard_hashes(small_disk / "run") == shard_hashes(tmp_path / "whole" / "run")

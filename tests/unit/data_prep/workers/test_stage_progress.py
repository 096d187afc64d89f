"""What the progress bar of a stage says, and notes of workers."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import pytest
import zstandard

from data_prep.workers import stage_progress
from data_prep.workers.cluster import Cluster
from data_prep.workers.stage import Stage
from data_prep.workers.time_limit import Guard, TooSlow, excluded_records
from data_prep.workers.worker_deaths import CRASHED, NODE, Job, Progress, record_death
from data_prep.workers.worker_notes import current, noted, read_note
from data_prep.workers.worker_process import check_site, versions


class Bar:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.completed, self.note, self.total = 0.0, "", None

    def update(self, completed: float, note: str = "", total: float | None = None) -> None:
        self.completed, self.note, self.total = completed, note, total


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    made = Stage(tmp_path / "stage", {})
    made.begin()
    return made


class Task:
    def __init__(self, name: str) -> None:
        self.name = name


def test_a_bar_goes_on_where_the_last_run_stopped(stage: Stage) -> None:
    stage.commit("other-phase", {})
    bar = Bar()
    watching = stage_progress.ProgressReporter(bar, stage, lambda name: 2e6, 10e6, [Task("c"), Task("d")])
    assert (bar.completed, bar.total) == (6, 10)
    progress = Progress(tasks=2, finished=1, committed=["c"], documents=500)
    watching.tick(progress)
    watching.tick(progress)
    assert bar.completed == 8
    assert "1 units, 1/2 tasks" in bar.note and "documents/s" in bar.note
    progress.committed.append("d")
    progress.running_bytes = 3_000_000
    watching.tick(progress)
    assert (bar.completed, bar.total) == (13, 13)  # more than was expected: the end moves


def test_a_stalled_stage_says_on_what(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bar = Bar()
    watching = stage_progress.ProgressReporter(bar, stage, lambda name: 1.0, None, [])
    job = Job(None, tmp_path / "note")
    with noted(job.notes, node="two (10.0.0.2)"), Guard(stage, "000-000001", "crawl-0001.warc.gz", 30) as guard:
        guard.next(812, 1000)
        job.look()
    progress = Progress(tasks=3)
    watching.tick(progress)
    assert "waiting" not in bar.note
    late = time.monotonic() + 34
    monkeypatch.setattr(time, "monotonic", lambda: late)
    watching.tick(progress)
    assert bar.note.endswith("waiting 34 s for a free worker")
    progress.look([job])
    watching.tick(progress)
    assert bar.note.endswith("waiting 34 s for crawl-0001.warc.gz document 812 on node two (10.0.0.2)")


def test_inline_work_is_counted(stage: Stage) -> None:
    seen: list[list[str]] = []
    done = Cluster(workers=0).map(
        lambda name: stage.commit(name, {}), ["a", "b"], lambda p: seen.append(p.committed[:])
    )
    assert [task for task, _ in done] == ["a", "b"]
    assert seen == [["a"], ["a", "b"]]


def test_expected_bytes(tmp_path: Path) -> None:
    text = b"the quick brown fox jumps over the lazy dog and on it goes\n" * 40_000
    files = [tmp_path / name for name in ("a.txt", "b.txt.gz", "c.txt.zst", "d.gz")]
    for file, data in zip(files, (text, gzip.compress(text), zstandard.compress(text), b"no gzip at all"), strict=True):
        file.write_bytes(data)
    sizes = [(file, file.stat().st_size) for file in files]
    for entry in sizes[:3]:
        assert stage_progress.expected_bytes([entry]) == pytest.approx(len(text), rel=0.05)
    assert stage_progress.expected_bytes([sizes[3]]) == 3 * 14
    assert stage_progress.expected_bytes([(Path("s3://far/away.parquet"), 100)]) == 200


def test_notes(tmp_path: Path, stage: Stage) -> None:
    path = tmp_path / "note"
    assert read_note(path) is None
    with noted(path) as beat:
        assert current() is beat
        with Guard(stage, "unit", "a.jsonl", 2.0) as guard:
            assert guard.next(7, 3_000_000)
            note = read_note(path)
            assert note is not None
            assert (note.ordinal, note.position, note.documents, note.bytes, note.seconds) == (0, 7, 1, 3_000_000, 6.0)
            assert note.where == "a.jsonl document 7"
            guard.rest()
            stage.commit("unit", {})
        note = read_note(path)
        assert note is not None
        assert (note.units, note.seconds) == (1, 0.0)
    assert not path.exists()
    path.write_bytes(b"half a no")
    assert read_note(path) is None


def test_two_deaths_at_one_document_exclude_it(
    tmp_path: Path, stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(None, tmp_path / "note")
    with noted(job.notes), Guard(stage, "unit", "a.jsonl", 2.0) as guard:
        guard.next(7, 10)
        for kind in (NODE, CRASHED):  # a node's death is not the document's fault
            record_death(job, kind, 3)
            assert not excluded_records(stage.unit_file("unit", ""))
        record_death(job, CRASHED, 3)
    assert excluded_records(stage.unit_file("unit", "")) == {0}
    assert capsys.readouterr().err.count("note: ") == 3
    with Guard(stage, "unit", "a.jsonl", 2.0) as guard:
        assert not guard.next(7, 10)
        guard.keep_aside({"text": "x"})
        assert guard.next(8, 10)
    assert list(guard.files) == ["excluded/unit-00000000"]
    with pytest.raises(ValueError, match=r"once \(data.limits.attempts is 1\) without progress"):
        record_death(job, CRASHED, 1)


def test_time_limits_are_of_the_processor_and_pass_broad_handlers(stage: Stage) -> None:
    with Guard(stage, "unit", "a.jsonl", 0.2) as guard:
        guard.next(0, 10)
        with guard.limit:
            time.sleep(0.5)  # waiting costs no time
        guard.next(1, 10)
        with pytest.raises(TooSlow), guard.limit:
            while True:
                try:
                    sum(range(1000))
                except Exception:
                    continue
        guard.next(2, 2_000_000)  # two megabytes may take twice as long
        began = time.process_time()
        with pytest.raises(TooSlow), guard.limit:
            while True:
                sum(range(1000))
        assert time.process_time() - began > 0.35


def test_a_node_that_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.workers.worker_process._node", lambda: "two (10.0.0.2)")
    monkeypatch.setattr("data_prep.workers.worker_process._SHARED_SECONDS", 0.1)
    own = versions()
    (tmp_path / "token").touch()
    before = Path.cwd()
    check_site(tmp_path / "token", str(before), tuple(own.items()))
    assert Path.cwd() == before
    with pytest.raises(ValueError, match=r"node two \(10.0.0.2\) does not see .*file system that all nodes share"):
        check_site(tmp_path / "absent" / "token", "", tuple(own.items()))
    with pytest.raises(ValueError, match=r"node two \(10.0.0.2\) has pyarrow .*, the machine this was started on 1.0"):
        check_site(tmp_path / "token", "", (("pyarrow", "1.0"),))

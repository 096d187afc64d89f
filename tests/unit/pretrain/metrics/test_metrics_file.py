"""metrics.jsonl in parts: what a restart reads and cuts off, and that all readers see one list."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from eval.report.history import read_history
from pretrain.metrics import metrics_file
from pretrain.metrics.metrics_file import JsonLines, metric_files, read_metrics
from tests.parts.rank_processes import last_step
from tests.parts.training_run import metric_lines

LINE_BYTES = 80


def write(run: Path, steps: range, start: int = 0, part_bytes: int = 10 * LINE_BYTES) -> None:
    lines = JsonLines(run, start, part_bytes)
    for step in steps:
        lines.log(step, {"train/loss": float(step)})
    lines.close()


def names(run: Path) -> list[str]:
    return [file.name for file in metric_files(run)]


def test_a_full_part_is_closed_and_all_readers_see_one_list(tmp_path: Path) -> None:
    write(tmp_path, range(1, 51))
    assert (
        names(tmp_path)[:2] == ["metrics-00001.jsonl", "metrics-00002.jsonl"] and names(tmp_path)[-1] == "metrics.jsonl"
    )
    assert len(names(tmp_path)) > 3
    assert all(file.stat().st_size < 12 * LINE_BYTES for file in metric_files(tmp_path))
    expected = [(float(step), float(step)) for step in range(1, 51)]
    assert [(line["step"], line["train/loss"]) for line in read_metrics(tmp_path)] == expected
    assert read_history(tmp_path).get("train/loss") == expected
    assert metric_lines(tmp_path, "train/loss") == dict(expected)
    assert last_step(tmp_path) == 50


@pytest.mark.parametrize("start", [0, 1, 9, 13, 37, 50])
def test_resuming_leaves_each_step_once(tmp_path: Path, start: int) -> None:
    write(tmp_path, range(1, 51))
    newest = metric_files(tmp_path)[-1]
    with newest.open("a") as stream:
        stream.write('{"step": 51, "train/lo')  # killed in the middle of a line
    write(tmp_path, range(start + 1, 61), start)
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 61))
    numbers = [int(name[8:13]) for name in names(tmp_path)[:-1]]
    assert numbers == list(range(1, len(numbers) + 1))


def test_resuming_reads_only_what_it_cuts_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, range(1, 5001), part_bytes=2**30)
    monkeypatch.setattr(metrics_file, "_BLOCK_BYTES", 512)
    read: list[Any] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda line: read.append(line) or loads(line))
    inode = (tmp_path / "metrics.jsonl").stat().st_ino
    write(tmp_path, range(4991, 4992), 4990, 2**30)
    assert len(read) == 11 and (tmp_path / "metrics.jsonl").stat().st_ino == inode
    monkeypatch.undo()
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 4992))


def test_lines_longer_than_a_block_and_ends_that_are_no_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_file, "_BLOCK_BYTES", 7)
    write(tmp_path, range(1, 4), part_bytes=2**30)
    with (tmp_path / "metrics.jsonl").open("ab") as stream:
        stream.write(b"\0" * 50 + b"\n" + b"\0" * 20)  # what a power cut may leave
    assert last_step(tmp_path) == 3
    write(tmp_path, range(4, 5), 3)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_nothing_yet(tmp_path: Path) -> None:
    assert last_step(tmp_path) == 0 and metric_files(tmp_path) == [] and list(read_metrics(tmp_path)) == []


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4), part_bytes=2**30)
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text().replace('{"step": 2', '{"step" 2'))
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2, is not valid JSON"):
        list(read_metrics(tmp_path))


def test_a_full_disk_loses_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = JsonLines(tmp_path, 0)
    lines.log(1, {"train/loss": 1.0})
    good = lines._stream

    class Full:
        def __init__(self) -> None:
            self.left = 20

        def write(self, content: bytes) -> int:
            if not self.left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            taken, self.left = self.left, 0
            return good.write(content[:taken])

    monkeypatch.setattr(lines, "_stream", Full())
    lines.log(2, {"train/loss": 2.0})
    lines.log(3, {"train/loss": 3.0})
    monkeypatch.setattr(lines, "_stream", good)
    assert last_step(tmp_path) == 1
    lines.log(4, {"train/loss": 4.0})
    lines.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert capsys.readouterr().err.count("its lines wait until there is room") == 1

"""Writes and reads `metrics.jsonl`: one JSON object a line, in parts, so that no file or restart grows with the run.

The newest part is `metrics.jsonl`. A full one is renamed to `metrics-00001.jsonl`, `metrics-00002.jsonl`, …, the oldest
first. Everything that reads them goes through `read_metrics` or `metric_files`. Free of torch.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.common.files import fsync_path
from configs.common.notices import warn
from configs.safety.parsing import parse_json

METRICS = "metrics"
PART_BYTES = 64 * 2**20
_BLOCK_BYTES = 2**16


def metric_files(run: Path, name: str = METRICS) -> list[Path]:
    """The parts that are there, in the order of their steps; `name`: of another record of the same form."""
    newest = run / f"{name}.jsonl"
    return [*_full_parts(run, name), *([newest] if newest.is_file() else [])]


def _full_parts(run: Path, name: str) -> list[Path]:
    return sorted(run.glob(f"{name}-*.jsonl"))


def read_metrics(run: Path, name: str = METRICS) -> Iterator[dict[str, Any]]:
    """Yields all lines of a run, part by part, without an unfinished last line.

    Raises:
        ValueError: a whole line is not JSON.
    """
    for file in metric_files(run, name):
        with file.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.endswith("\n"):
                    break
                try:
                    yield parse_json(line)
                except ValueError as error:
                    raise ValueError(f"{file}, line {number}, is not valid JSON ({error})") from error


class JsonLines:
    """Appends to a run's metrics; removes lines after the checkpoint on resuming, so that each step stands once."""

    def __init__(self, run: Path, start_step: int, part_bytes: int = PART_BYTES, name: str = METRICS) -> None:
        """Drops the lines of steps after `start_step`; starts a new part after `part_bytes`."""
        self._run, self._name, self._part_bytes = run, name, part_bytes
        self._file = run / f"{name}.jsonl"
        run.mkdir(parents=True, exist_ok=True)
        for file in reversed(metric_files(run, name)):
            if _cut_after(file, start_step):
                break
            if file != self._file:  # which somebody may be following
                file.unlink()
        self._stream = self._file.open("ab", buffering=0)
        self._unwritten = b""

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Writes one line; keeps lines in memory while the disk is full, as a save may make it."""
        line = json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n"
        waiting = bool(self._unwritten)
        self._unwritten += line.encode()
        try:
            self._write()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            if not waiting:
                warn(f"{self._file}: {error.strerror}; its lines wait until there is room")
            return
        if self._stream.tell() > self._part_bytes:
            self.close()
            full = _full_parts(self._run, self._name)
            number = int(full[-1].stem.rpartition("-")[2]) + 1 if full else 1
            self._file.rename(self._run / f"{self._name}-{number:05d}.jsonl")
            self._stream = self._file.open("ab", buffering=0)

    def show(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes nothing: texts are no measurements."""

    def _write(self) -> None:
        while self._unwritten:
            self._unwritten = self._unwritten[self._stream.write(self._unwritten) :]

    def close(self) -> None:
        """Flushes to disk and closes."""
        self._write()
        self._stream.close()
        fsync_path(self._file)


def _cut_after(file: Path, step: int) -> bool:
    """Cuts off the lines of later steps and an unfinished one, reading only those; False when none is left."""
    end = next((end for end, found in lines_from_the_end(file) if found <= step), 0)
    os.truncate(file, end)
    return end > 0


def lines_from_the_end(file: Path) -> Iterator[tuple[int, float]]:
    """Yields whole lines, the last one first: (offset of its end, its step). A line without a step has infinity."""
    with file.open("rb") as stream:
        offset, content, met_line_end = stream.seek(0, os.SEEK_END), b"", False
        while offset:
            size = min(_BLOCK_BYTES, offset)
            offset -= size
            stream.seek(offset)
            content = stream.read(size) + content
            if not met_line_end:  # what follows the last one is unfinished
                content = content[: content.rfind(b"\n") + 1]
                met_line_end = bool(content)
            while content and ((begin := content.rfind(b"\n", 0, len(content) - 1) + 1) or not offset):
                yield offset + len(content), _step(content[begin:])
                content = content[:begin]


def _step(line: bytes) -> float:
    try:
        return float(parse_json(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf

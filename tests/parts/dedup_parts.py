"""Parts of documents for tests of deduplication, and stages run on them in this process or in several."""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.documents.parts_writer import sorted_hashes
from data_prep.workers.parts import SCHEMA
from data_prep.workers.stage import Run, Stage
from data_prep.workers.verdicts import Part, remaining

ROWS_OF_A_GROUP = 50


def make_parts(directory: Path, texts: Sequence[Sequence[str]], sources: Sequence[str] | None = None) -> list[Part]:
    """Writes one part for each list of texts, as stage `documents` would."""
    directory.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, rows in enumerate(texts):
        name = f"000-{number:05d}-000000"
        encoded = [text.encode() for text in rows]
        columns: dict[str, list[Any]] = {
            "id": [f"{number}/{row}" for row in range(len(rows))],
            "text": list(rows),
            "url": [None] * len(rows),
            "metadata": [None] * len(rows),
            "offset": [0] * len(rows),
            "part": [0] * len(rows),
            "bytes": [len(data) for data in encoded],
        }
        arrays = [pa.array(columns[kind.name], kind.type) for kind in SCHEMA]
        table = pa.Table.from_arrays(arrays, schema=SCHEMA)
        pq.write_table(table, directory / f"{name}.parquet", row_group_size=ROWS_OF_A_GROUP)
        digests = [hashlib.blake2b(data, digest_size=16).digest() for data in encoded]
        with (directory / f"{name}.hashes.npy").open("wb") as stream:
            np.save(stream, sorted_hashes(digests, columns["bytes"]))
        source = sources[number] if sources else "s"
        parts.append(Part(name, number, source, directory, (), len(rows), sum(columns["bytes"])))
    return parts


def run_inline(stage: Stage) -> Run:
    """Runs units in this process."""

    def run(label: str, function: Callable[[Any], Any], tasks: Sequence[Any]) -> None:
        assert len({task.name for task in tasks}) == len(tasks), label
        for task in stage.missing(tasks):
            function(task)

    return run


def run_backwards(stage: Stage) -> Run:
    """Last task first, in two processes that share no memory, as workers are; a server without threads forks them."""

    def run(label: str, function: Callable[[Any], Any], tasks: Sequence[Any]) -> None:
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("forkserver")) as pool:
            list(pool.map(function, stage.missing(tasks)[::-1]))

    return run


def make_stage(
    directory: Path, stage: Any, parts: Sequence[Part], run: Callable[[Stage], Run] = run_inline
) -> tuple[Path, dict[str, Any]]:
    """Runs a verdict stage anew; returns the directory with its verdicts, and its manifest."""
    shutil.rmtree(directory / stage.name, ignore_errors=True)
    place = Stage(directory / stage.name, {"settings": stage.inputs})
    place.begin()
    extra = stage.make(place, parts, run(place))
    files: dict[str, Any] = {}
    for part in parts:
        unit = place.unit(part.name)
        assert unit is not None
        files.update(unit["files"])
    return place.directory, place.finish(extra, files)


def after(parts: Sequence[Part], *directories: Path) -> list[Part]:
    """The parts as the next stage sees them."""
    return [
        Part(part.name, part.number, part.source, part.documents, (*part.verdicts, *directories), part.rows, part.bytes)
        for part in parts
    ]


def texts_left(parts: Sequence[Part]) -> list[list[tuple[int, str]]]:
    """(row, text) of what is left of each part."""
    return [[(row, fields["text"]) for row, fields in remaining(part, ["text"])] for part in parts]


def contents(directory: Path) -> dict[str, bytes]:
    """All files of a finished stage."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}

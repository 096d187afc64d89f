"""Writes verdicts on documents (drop, cut, mark), and reads the documents that are left.

Deduplication and decontamination never rewrite text. For every part of the documents they say which rows are dropped
and which bytes of a row's text are cut; whoever reads the part after them sees the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs.common.files import atomic_path
from data_prep.workers.manifests import Capped, Count, Counts, Example
from data_prep.workers.parts import read_part
from data_prep.workers.stage import Run, Stage, describe_file
from data_prep.workers.worker_notes import current

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("action", pa.string()),  # drop, cut or mark
        ("reason", pa.string()),
        ("spans", pa.list_(pa.int64())),  # cut: start, end, start, end … in bytes of the text that the stage saw
        ("detail", pa.string()),
    ]
)
_EXAMPLES = 3


@dataclass(frozen=True)
class Part:
    """One part of the documents, with the verdicts so far.

    `number` is its place in the order of sources, files and parts, which decides who comes first.
    """

    name: str
    number: int
    source: str
    documents: Path
    verdicts: tuple[Path, ...]
    rows: int
    bytes: int

    def after(self, directory: Path) -> Part:
        """The same part with the verdicts of one more stage."""
        return replace(self, verdicts=(*self.verdicts, directory))


class VerdictStage(Protocol):
    """A deduplication or decontamination stage."""

    inputs: dict[str, Any]  # settings that its output depends on

    @property
    def name(self) -> str:
        """Name of its directory, and of the stage in the funnel."""

    @property
    def code(self) -> tuple[str, ...]:
        """Modules and packages of data_prep that its output depends on."""

    def make(self, stage: Stage, parts: Sequence[Part], run: Run) -> dict[str, Any]:
        """Commits every part by a `VerdictWriter`. Returns further content of the manifest.

        A key `files` holds descriptions of further files that stay in the stage's directory.
        """


# -------------------------------------------------------------------------------------------------------------- reading
class _Verdicts:
    """One stage's verdicts on one part."""

    def __init__(self, file: Path) -> None:
        self.dropped: dict[int, str] = {}  # row -> reason
        self.cuts: dict[int, list[int]] = {}
        if not file.is_file():
            return
        table = pq.read_table(file, columns=["row", "action", "reason", "spans"], partitioning=None)
        for row, action, reason, spans in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if action == "drop":
                self.dropped[row] = reason
            elif action == "cut":
                self.cuts[row] = spans


def remaining(part: Part, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row, fields) of the rows that no stage dropped, in order; `text` and `bytes` are those after all cuts.

    Args:
        part: what to read.
        columns: names as in `collect.SCHEMA`.
    """
    stages = [_Verdicts(directory / f"{part.name}.parquet") for directory in part.verdicts]
    dropped = set().union(*(stage.dropped for stage in stages))
    cuts = [stage.cuts for stage in stages if stage.cuts]
    needed = [*columns] if "text" in columns or not cuts else [*columns, "text"]
    beat = current()
    beat.enter(None, part.name)
    for start, table in read_part(part.documents, part.name, needed):
        names = table.column_names
        for row, values in enumerate(zip(*(column.to_pylist() for column in table.columns), strict=True), start):
            if row in dropped:
                continue
            fields = dict(zip(names, values, strict=True))
            beat.at(row, fields.get("bytes", 0))
            for spans in cuts:
                if row in spans:
                    encoded = without(fields["text"].encode(), spans[row])
                    fields["text"] = encoded.decode()
                    if "bytes" in fields:
                        fields["bytes"] = len(encoded)
            yield row, fields


def dropped(part: Part) -> Iterator[tuple[str, str]]:
    """(stage/reason, text) of the rows that the verdict stages dropped, as the text was then."""
    for index, directory in enumerate(part.verdicts):
        reasons = _Verdicts(directory / f"{part.name}.parquet").dropped
        if reasons:
            before = replace(part, verdicts=part.verdicts[:index])
            for row, fields in remaining(before, ["text"]):
                if row in reasons:
                    yield f"{directory.name}/{reasons[row]}", fields["text"]


def without(data: bytes, spans: Sequence[int]) -> bytes:
    """The bytes outside of the spans (start, end, start, end …)."""
    pieces, position = [], 0
    for start, end in zip(spans[::2], spans[1::2], strict=True):
        pieces.append(data[position:start])
        position = end
    return b"".join([*pieces, data[position:]])


# -------------------------------------------------------------------------------------------------------------- writing
class VerdictWriter:
    """Collects one stage's verdicts on one part. Rows come in any order, with at most one drop or cut each."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._rows: list[tuple[int, str, str, list[int] | None, str | None]] = []
        self._counts: Counts = defaultdict(Count)
        self._marks: Counts = defaultdict(Count)

    def drop(self, row: int, reason: str, size: int, detail: str | None = None) -> None:
        """The row goes; `size` is the bytes of its text as `remaining` gives it, `detail` says on what grounds."""
        self._rows.append((row, "drop", reason, None, detail))
        self._counts[reason] = self._counts[reason].plus(1, size)

    def cut(
        self, row: int, reason: str, spans: Sequence[tuple[int, int]] | np.ndarray, detail: str | None = None
    ) -> None:
        """These bytes go: [start, end) of the UTF-8 text as `remaining` gives it, sorted, apart, between characters."""
        flat = [int(value) for span in spans for value in span]
        assert flat == sorted(flat)
        self._rows.append((row, "cut", reason, flat, detail))
        self._counts[reason] = self._counts[reason].plus(0, sum(flat[1::2]) - sum(flat[::2]))

    def mark(self, row: int, reason: str, size: int, detail: str | None = None) -> None:
        """The row stays, but is counted."""
        self._rows.append((row, "mark", reason, None, detail))
        self._marks[reason] = self._marks[reason].plus(1, size)

    def commit(self, stage: Stage, extra: dict[str, Any] | None = None) -> None:
        """Writes the part's file, if there is any verdict, and commits the part."""
        content: dict[str, Any] = {"counts": dict(self._counts), "marks": dict(self._marks), "files": {}}
        self._rows.sort(key=lambda entry: (entry[0], entry[1]))
        content["examples"] = self._examples()
        if self._rows:
            file = stage.directory / f"{self._part.name}.parquet"
            columns = zip(*self._rows, strict=True)
            arrays = [pa.array(column, kind.type) for column, kind in zip(columns, SCHEMA, strict=True)]
            with atomic_path(file) as temporary:
                pq.write_table(
                    pa.Table.from_arrays(arrays, schema=SCHEMA), temporary, compression="zstd", compression_level=1
                )
            content["files"] = {file.name: describe_file(file)}
        stage.commit(self._part.name, {**content, **(extra or {})})

    def _examples(self) -> list[Example]:
        shown = Capped(_EXAMPLES)
        return [
            {"row": row, "action": action, "reason": reason, "spans": spans, "detail": detail}
            for row, action, reason, spans, detail in self._rows
            if shown.take(reason)
        ]

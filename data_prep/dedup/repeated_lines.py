"""Verdict stage `repeated_lines`: cuts lines or paragraphs that earlier documents of the source have.

Compared are the stretches without white space at their ends, by 128-bit BLAKE2b hashes that begin with the source. The
first `keep` documents that have one keep it (each in all its places), later ones lose it. A part sends each line into
the shuffle for its first `keep` documents alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from configs.common.files import atomic_path
from configs.schema.data import RepeatedLines
from data_prep.dedup.passes import PASSES_CODE, PartTask, Passes, RangeTask
from data_prep.dedup.shuffle import Records, ordered, starts_of_runs, values_by_key
from data_prep.workers.stage import Run, Stage
from data_prep.workers.verdicts import Part, VerdictWriter, remaining

REASON = "repeated_lines"
REASON_ALL = "only_repeated_lines"
_SEPARATORS = {"line": re.compile(rb"\n"), "paragraph": re.compile(rb"\n[^\S\n]*\n\s*")}

Span = tuple[int, int]


class LineDeduplication:
    """The stage, for the pipeline."""

    name = "repeated_lines"
    code = ("dedup/repeated_lines", *PASSES_CODE)

    def __init__(self, settings: RepeatedLines) -> None:
        self.inputs: dict[str, Any] = settings.model_dump()
        self._settings = settings

    def make(self, stage: Stage, parts: Sequence[Part], run: Run) -> dict[str, Any]:
        """Parts -> ranges of hashes -> parts; the manifest gets the number of lines (or paragraphs) cut."""
        passes = Passes(stage, parts, run, self._settings)
        keys = passes.put("hashes", put_lines, width=3)
        found = passes.find("repeated", find_repeated, keys)
        units = passes.write(write_verdicts, found)
        return {"lines": sum(unit["lines"] for unit in units)}


def put_lines(task: PartTask[RepeatedLines]) -> None:
    """Writes (hash, hash, document) of the part's different lines. Lines beyond `keep` go to a file of the part."""
    numbered = task.numbered
    digests: list[bytes] = []
    numbers: list[int] = []
    for row, fields in remaining(numbered.part, ["text"]):
        different = {digest for _, digest in hashed_units(fields["text"].encode(), numbered.part.source, task.settings)}
        digests.extend(different)
        numbers.extend([numbered.base + row] * len(different))
    halves = np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2).astype(np.uint64)
    records = ordered(np.concatenate([halves, np.array(numbers, dtype=np.uint64)[:, None]], axis=1))
    beyond = _beyond(records, task.settings.keep)
    with (
        atomic_path(numbered.stage.unit_file(f"local.{numbered.part.name}", ".npy")) as file,
        file.open("wb") as stream,
    ):
        np.save(stream, records[beyond][:, [2, 0]])
    task.put(records[~beyond])
    task.commit()


def find_repeated(task: RangeTask[RepeatedLines]) -> None:
    """(document, half of the hash) of the lines to cut."""
    records = task.read()
    task.put(records[_beyond(records, task.settings.keep)][:, [2, 0]])
    task.commit()


def _beyond(records: Records, keep: int) -> np.ndarray:
    """Marks the sorted (hash, hash, document) that come after the first `keep` of their hash."""
    starts = starts_of_runs(records[:, 0], records[:, 1])
    places = np.arange(len(records)) - np.repeat(starts, np.diff([*starts, len(records)]))
    beyond: np.ndarray = places >= keep
    return beyond


def write_verdicts(task: PartTask[RepeatedLines]) -> None:
    """Cuts lines; drops documents of which only white space would be left."""
    numbered = task.numbered
    local = np.load(numbered.stage.unit_file(f"local.{numbered.part.name}", ".npy"))
    hashes = values_by_key(ordered(np.concatenate([task.read(), local])))  # of the lines to cut, by document
    writer = VerdictWriter(numbered.part)
    cut = 0
    for row, fields in remaining(numbered.part, ["text"]) if hashes else ():
        if numbered.base + row not in hashes:
            continue
        repeated = set(hashes[numbered.base + row].tolist())
        encoded = fields["text"].encode()
        units = hashed_units(encoded, numbered.part.source, task.settings)
        spans = [span for span, digest in units if int.from_bytes(digest[:8], "little") in repeated]
        cut += len(spans)
        merged = merge_spans(encoded, spans)
        detail = f"{len(spans)} {task.settings.unit}s"
        if any(encoded[start:end].strip() for start, end in _gaps(merged, len(encoded))):
            writer.cut(row, REASON, merged, detail)
        else:
            writer.drop(row, REASON_ALL, len(encoded), detail)
    writer.commit(task.stage, {"lines": cut})


# --------------------------------------------------------------------------------------------------------------- spans
def hashed_units(encoded: bytes, source: str, settings: RepeatedLines) -> Iterator[tuple[Span, bytes]]:
    """Span with the separator after it, and 16 bytes of hash, of each line or paragraph long enough to count."""
    salt = hashlib.blake2b(source.encode(), digest_size=16).digest()
    for start, end in units(encoded, settings.unit):
        content = encoded[start:end].strip()
        least = settings.min_characters
        if len(content) >= 4 * least or (len(content) >= least and len(content.decode()) >= least):
            yield (start, end), hashlib.blake2b(content, digest_size=16, salt=salt).digest()


def units(encoded: bytes, unit: Literal["line", "paragraph"]) -> Iterator[Span]:
    """The text's lines or paragraphs, each with the separator after it."""
    start = 0
    for separator in _SEPARATORS[unit].finditer(encoded):
        yield start, separator.end()
        start = separator.end()
    if start < len(encoded):
        yield start, len(encoded)


def merge_spans(encoded: bytes, spans: Sequence[Span]) -> list[Span]:
    """Adjoining spans as one; where the end of the text goes, the white space before it goes as well."""
    merged: list[Span] = []
    for start, end in spans:
        if merged and merged[-1][1] == start:
            merged[-1] = merged[-1][0], end
        else:
            merged.append((start, end))
    if merged and merged[-1][1] == len(encoded):
        start = len(encoded[: merged[-1][0]].rstrip())
        while len(merged) > 1 and merged[-2][1] >= start:
            start = min(start, merged[-2][0])
            merged.pop()
        merged[-1] = start, len(encoded)
    return merged


def _gaps(spans: Sequence[Span], size: int) -> Iterator[Span]:
    """The spans between these spans."""
    position = 0
    for start, end in spans:
        yield position, start
        position = end
    yield position, size

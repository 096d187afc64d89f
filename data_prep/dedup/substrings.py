"""Verdict stage `substrings`: cuts passages of at least `min_bytes` bytes that an earlier document has.

Cut is exactly the union of all windows of `min_bytes` bytes that some earlier document contains too, less the bytes of
characters that it would cut in two (Lee et al. 2021, "Deduplicating Training Data Makes Language Models Better", find
the same windows by a suffix array over everything). To look up every window of every text would take sixteen bytes for
each byte of text. So two shuffles are used. Equal windows have equal anchors (see `byte_windows`): the first shuffle
finds the anchors that several documents have, the second looks up the windows with such anchors alone.

Example, with windows of 5 bytes and two documents:

    document 0          ..the cat sat..
    document 1          a cat sat on it
    anchors shared      those of the windows inside " cat sat"
    windows looked up   " cat ", "cat s", "at sa", "t sat"; all of them occur in document 0
    cut from 1          their union, " cat sat"; "a on it" is left

Hashes of windows have 88 bits: 64 in the first number of a record, 24 in the second above the document's number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from configs.common.files import atomic_path
from configs.schema.data import RepeatedSubstrings
from data_prep.dedup.byte_windows import ByteBatch, ByteWindows, byte_batches
from data_prep.dedup.document_index import DOCUMENT_BITS, NumberedPart
from data_prep.dedup.passes import PASSES_CODE, PartTask, Passes, RangeTask
from data_prep.dedup.shuffle import (
    Records,
    ordered,
    read_records,
    starts_of_runs,
    values_by_key,
    write_records,
)
from data_prep.text.hashing import Wide
from data_prep.workers.stage import Run, Stage
from data_prep.workers.verdicts import Part, VerdictWriter, remaining, without

REASON = "repeated_substrings"
REASON_ALL = "only_repeated_substrings"
_NUMBER = np.uint64(2**DOCUMENT_BITS - 1)
# Windows that a part holds before it sorts them and puts them aside.
HELD_WINDOWS = 2_000_000
# Bytes of text whose answers are read at once.
_READ_BYTES = 2**20


class SubstringDeduplication:
    """The stage, for the pipeline."""

    name = "substrings"
    code = ("dedup/substrings", "dedup/byte_windows", "text/hashing", *PASSES_CODE)

    def __init__(self, settings: RepeatedSubstrings) -> None:
        self.inputs: dict[str, Any] = settings.model_dump()
        self._settings = settings

    def make(self, stage: Stage, parts: Sequence[Part], run: Run) -> dict[str, Any]:
        """Parts -> anchors -> parts -> windows -> parts."""
        passes = Passes(stage, parts, run, self._settings)
        anchors = passes.put("anchors", put_anchors, width=2)
        shared = passes.find("shared_anchors", find_shared, anchors)
        windows = passes.put("windows", put_windows, width=2, source=shared)
        shared.discard()
        repeated = passes.find("repeated_windows", find_repeated, windows)
        passes.write(write_verdicts, repeated)
        return {}


# ------------------------------------------------------------------------------------------------------------- anchors
def put_anchors(task: PartTask[RepeatedSubstrings]) -> None:
    """Writes (anchor, first document of the part with it). Anchors of several documents go to a file of the part."""
    windows = ByteWindows(task.settings.min_bytes)
    found = [np.zeros((0, 2), np.uint64)]
    for batch in byte_batches(_texts(task.numbered), task.settings.min_bytes):
        starts, stretches = windows.starts(batch)
        anchors, places = windows.anchors(batch, starts)
        fresh = starts_of_runs(places.astype(np.uint64), stretches.astype(np.uint64))
        numbers = batch.numbers[stretches[fresh]].astype(np.uint64)
        found.append(np.stack([anchors[fresh], numbers], axis=1))
    records = ordered(np.concatenate(found))
    starts_of_keys = starts_of_runs(records[:, 0])
    lasts = np.append(starts_of_keys[1:], len(records)) - 1
    several = records[lasts, 1] != records[starts_of_keys, 1] if len(records) else np.zeros(0, bool)
    with atomic_path(_local(task, "anchors")) as file, file.open("wb") as stream:
        np.save(stream, records[starts_of_keys[several], 0])
    task.put(records[starts_of_keys])
    task.commit()


def find_shared(task: RangeTask[RepeatedSubstrings]) -> None:
    """(document, anchor) of anchors that several parts have."""
    records = task.read()
    starts = starts_of_runs(records[:, 0])
    counts = np.diff([*starts, len(records)])
    task.put(records[np.repeat(counts > 1, counts)][:, ::-1])
    task.commit()


# ------------------------------------------------------------------------------------------------------------- windows
def put_windows(task: PartTask[RepeatedSubstrings]) -> None:
    """Writes (hash, rest of the hash and document) of windows whose anchor is shared.

    Repetitions within the part go to a file of the part.
    """
    assert task.result is not None
    shared = np.unique(np.concatenate([task.read()[:, 1], np.load(_local(task, "anchors"))]))
    windows = ByteWindows(task.settings.min_bytes)

    def sorted_windows() -> Iterator[Records]:
        held: list[Records] = []
        for batch in byte_batches(_texts(task.numbered), task.settings.min_bytes) if len(shared) else ():
            held.append(_candidates(windows, batch, shared))
            if sum(map(len, held)) >= HELD_WINDOWS:
                yield ordered(np.concatenate(held))
                held = []
        if held:
            yield ordered(np.concatenate(held))

    with atomic_path(_local(task, "windows")) as file, file.open("wb") as stream:
        task.result.put_blocks(task.numbered.index, map(partial(_keep_firsts, stream), sorted_windows()))
    task.commit()


def _candidates(windows: ByteWindows, batch: ByteBatch, shared: Wide) -> Records:
    """(hash, 24 more bits of it above the document) of the batch's windows whose anchor is one of `shared`."""
    starts, stretches = windows.starts(batch)
    anchors, _ = windows.anchors(batch, starts)
    place = np.minimum(np.searchsorted(shared, anchors), len(shared) - 1)
    chosen = shared[place] == anchors
    if not chosen.any():
        return np.zeros((0, 2), np.uint64)
    starts, numbers = starts[chosen], batch.numbers[stretches[chosen]].astype(np.uint64)
    first, second = (windows.hashes(batch.data, windows.size, which)[starts] for which in (0, 1))
    return np.stack([first, (second & ~_NUMBER) | numbers], axis=1)


def _keep_firsts(stream: BinaryIO, records: Records) -> Records:
    """The first document of each window; writes (document, hash) of the others, by document."""
    firsts, others = _split(records)
    write_records(stream, ordered(others))
    return firsts


def find_repeated(task: RangeTask[RepeatedSubstrings]) -> None:
    """(document, hash) of windows that an earlier document has."""
    _, others = _split(task.read())
    task.put(others)
    task.commit()


def _split(records: Records) -> tuple[Records, Records]:
    """Of sorted records: the first of each window, and (document, hash) of the other documents that have it."""
    # The document stands in the low bits, so the records of one window are sorted by document: the first one keeps it.
    starts = starts_of_runs(records[:, 0], records[:, 1] & ~_NUMBER)
    numbers = records[:, 1] & _NUMBER
    first = np.repeat(numbers[starts], np.diff([*starts, len(records)]))
    later = numbers != first
    others = np.stack([numbers[later], records[later, 0]], axis=1)
    return records[starts], others


# ------------------------------------------------------------------------------------------------------------ verdicts
def write_verdicts(task: PartTask[RepeatedSubstrings]) -> None:
    """Cuts passages; drops documents of which only white space would be left."""
    numbered = task.numbered
    windows = ByteWindows(task.settings.min_bytes)
    writer = VerdictWriter(numbered.part)
    for texts in _batches(numbered):
        repeated = _repeated_windows(task, texts)
        chosen = [(number, data) for number, data in texts if number in repeated]
        covered = {number: np.zeros(len(data) + 1, dtype=np.int32) for number, data in chosen}
        for batch in byte_batches(chosen, task.settings.min_bytes):
            _cover(windows, batch, repeated, covered)
        for number, data in chosen:
            spans = _spans(data, covered[number])
            _decide(writer, number - numbered.base, data, spans)
    writer.commit(task.stage)


def _batches(numbered: NumberedPart) -> Iterator[list[tuple[int, bytes]]]:
    texts: list[tuple[int, bytes]] = []
    size = 0
    for number, data in _texts(numbered):
        texts.append((number, data))
        size += len(data)
        if size >= _READ_BYTES:
            yield texts
            texts, size = [], 0
    if texts:
        yield texts


def _repeated_windows(task: PartTask[RepeatedSubstrings], texts: Sequence[tuple[int, bytes]]) -> dict[int, Wide]:
    """Sorted hashes of the repeated windows of each document that has any."""
    assert task.source is not None
    low, high = texts[0][0], texts[-1][0] + 1
    own = read_records(_local(task, "windows"), 2, low, high)
    return values_by_key(ordered(np.concatenate([task.source.read(low, high), own])))


def _cover(
    windows: ByteWindows, batch: ByteBatch, repeated: dict[int, Wide], covered: dict[int, npt.NDArray[np.int32]]
) -> None:
    """Notes +1 where a repeated window begins and -1 where it has ended."""
    hashes = windows.hashes(batch.data, windows.size)
    for number, offset, start, end in zip(
        batch.numbers.tolist(), batch.offsets.tolist(), batch.edges[:-1], batch.edges[1:], strict=True
    ):
        own = hashes[start : end - windows.size + 1]
        known = repeated[number]
        hits = np.flatnonzero(known[np.minimum(np.searchsorted(known, own), len(known) - 1)] == own) + offset
        covered[number][hits] += 1
        covered[number][hits + windows.size] -= 1


def _spans(data: bytes, changes: npt.NDArray[np.int32]) -> list[tuple[int, int]]:
    """Covered stretches, made smaller to whole characters."""
    # changes 0 +1 0 +1 -1 0 -1: bytes 1 to 5 lie in one window or two, so the span is [1, 6).
    inside = np.concatenate([[False], np.cumsum(changes) > 0, [False]])
    edges = np.flatnonzero(inside[1:] != inside[:-1]).tolist()
    spans = []
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        while start < end and data[start] & 0xC0 == 0x80:
            start += 1
        while end > start and end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        if start < end:
            spans.append((start, end))
    return spans


def _decide(writer: VerdictWriter, row: int, data: bytes, spans: list[tuple[int, int]]) -> None:
    if not spans:
        return
    if without(data, [edge for span in spans for edge in span]).strip():
        writer.cut(row, REASON, spans)
    else:
        writer.drop(row, REASON_ALL, len(data))


def _texts(numbered: NumberedPart) -> Iterator[tuple[int, bytes]]:
    """Number and UTF-8 text of the part's documents."""
    for row, fields in remaining(numbered.part, ["text"]):
        yield numbered.base + row, fields["text"].encode()


def _local(task: PartTask[RepeatedSubstrings], what: str) -> Path:
    """File for what the part knows without the shuffle."""
    return task.numbered.stage.unit_file(f"local.{what}.{task.numbered.part.name}", ".records")

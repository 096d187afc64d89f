"""Runs stage `documents` over all files and writes its manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from configs.common.notices import note
from configs.schema.sources import Source
from data_prep.documents import parts_writer
from data_prep.funnel.tally import KEPT, READ
from data_prep.quality.rules import custom_rules
from data_prep.readers import file_format
from data_prep.readers.origins import Origin, origins
from data_prep.sources.places import ask_all, size_of
from data_prep.stages.graph import Plan
from data_prep.workers.manifests import (
    Capped,
    Count,
    Counts,
    DocumentsManifest,
    Example,
    Marks,
    PartEntry,
    add_counts,
    add_marks,
)
from data_prep.workers.runner import Runner
from data_prep.workers.stage import Stage
from data_prep.workers.stage_progress import expected_bytes

_EXAMPLES = 5
_SHOWN = 120  # characters of an example in a message
_UNREAD = ("read/", "extract/")
_OF_FILES = ("read/truncated_file", "read/damaged_file", "read/unreadable_file", "read/expands_too_much")
_SAY_WHAT = ("read/missing_text", "read/missing_field")

Item = TypeVar("Item")


@dataclass(frozen=True)
class Look:
    """How many files are read and how many examples are kept: all files for a corpus, few for a sample."""

    examples: int = 3  # of every reason, in each part
    characters: int = 200  # of each example
    files: int | None = None  # read of each source, evenly spaced; None: all
    may_be_empty: bool = False  # a source of which nothing can be read is no error


def make_documents(plan: Plan, runner: Runner, look: Look = Look()) -> dict[str, Any]:
    """Reads all sources, with what an earlier run left; returns the manifest.

    Raises:
        ValueError: a source of which no document can be read.
    """
    found = [
        (f"{index:03d}-{number:05d}", origin)
        for index, source in enumerate(plan.data.sources)
        for number, origin in enumerate(evenly(origins(source), look.files))
    ]
    code = custom_rules(plan.data.quality.rules)
    stage = plan.documents
    stage.begin()
    todo = [(origin, number) for number, origin in found if stage.unit(f"file.{number}") is None]
    ask_all(size_of, [origin.place for origin, _ in todo if origin.place])
    everything = sum(origin.size for origin, _ in todo)
    tasks = [
        parts_writer.FileTask(
            stage, plan.data, origin, number, first, stride, look.examples, look.characters, code, plan.wanted
        )
        for origin, number in todo
        for stride in [_stride(origin, plan.data.unit_bytes, everything, runner.cluster.workers)]
        for first in range(stride)
    ]
    left = Counter(task.number for task in tasks)

    def size(name: str) -> float:
        return float((stage.unit(name) or {}).get("raw_bytes", 0))

    total = expected_bytes((origin.path or Path(origin.name), origin.size) for _, origin in found) if tasks else None
    for task, parts in runner.map(stage, "documents", parts_writer.collect_file, tasks, size, total):
        left[task.number] -= 1
        if not left[task.number]:
            stage.commit(f"file.{task.number}", {"parts": parts})
    counted = {number: (stage.unit(f"file.{number}") or {})["parts"] for number, _ in found}
    names = [parts_writer.part_name(number, part) for number, parts in counted.items() for part in range(parts)]
    return _finish(stage, plan.data.sources, names, max(look.examples, _EXAMPLES), look.may_be_empty)


def evenly(items: Sequence[Item], count: int | None) -> list[Item]:
    """Chooses `count` evenly spaced items; all of them for None or when there are no more."""
    if count is None or count >= len(items):
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def _stride(origin: Origin, unit_bytes: int, everything: int, workers: int) -> int:
    """Workers that read one file: its share of all bytes, but no more than it may have parts."""
    if not origin.size:
        return 1
    return max(1, min(workers, -(-workers * origin.size // everything), 1 + 3 * origin.size // unit_bytes))


def _finish(
    stage: Stage, sources: Sequence[Source], names: Sequence[str], most: int, may_be_empty: bool
) -> dict[str, Any]:
    """Adds up the units and writes the manifest."""
    own_counts: dict[str, Counts] = {source.name: {} for source in sources}
    own_marks: dict[str, Marks] = {source.name: {} for source in sources}
    manifest = DocumentsManifest([], own_counts, own_marks, [])
    files: dict[str, Any] = {}
    shown = Capped(most)
    for name in names:
        unit = stage.unit(name)
        assert unit is not None, name
        source = unit["source"]
        manifest.parts.append(PartEntry(name, source, unit["file"], unit["documents"], unit["bytes"]))
        files.update(unit["files"])
        add_counts(manifest.counts[source], unit["counts"])
        add_marks(manifest.marks[source], {key: [value] for key, value in unit["marks"].items()})
        manifest.examples.extend(
            {"source": source, **example} for example in unit["examples"] if shown.take((source, example["key"]))
        )
    if not may_be_empty:
        for settings in sources:
            _check_readable(settings, manifest)
    return stage.finish(manifest.content(), files)


def _check_readable(source: Source, manifest: DocumentsManifest) -> None:
    """Raises `ValueError` for a source of which no document could be read; prints a note when none is left."""
    counts = manifest.counts[source.name]
    examples = [example for example in manifest.examples if example["source"] == source.name]
    found = _said(counts, examples)
    unread = sum(count.documents for key, count in counts.items() if key.startswith(_UNREAD) and key != READ)
    if counts.get(READ, Count()).documents == unread:
        raise ValueError(
            f"source {source.name}: no document could be read (found: {found}); {_advice(counts, examples, source)}"
        )
    if not counts.get(KEPT, Count()).documents:
        # Not the end of hours of work: the other sources may be what was wanted.
        note(f"source {source.name}: no document is left (found: {found})")


def _said(counts: Counts, examples: Sequence[Example]) -> str:
    """Counts by reason; of what could not be read, the first place too."""
    first: dict[str, str] = {}
    for example in examples:
        if example["key"].startswith(_UNREAD):
            what = f": {example['excerpt'][:_SHOWN]}" if example["key"] in _SAY_WHAT else ""
            first.setdefault(example["key"], f" ({example['id'].removesuffix(':0')}{what})")
    shown = [
        f"{key.partition('/')[2]} {count.documents}{first.get(key, '')}"
        for key, count in sorted(counts.items())
        if count.documents and key not in (READ, KEPT)
    ]
    return ", ".join(shown) or "nothing"


def _advice(counts: Counts, examples: Sequence[Example], source: Source) -> str:
    """Suggests a remedy for a source of which nothing can be read, by its most frequent reason."""
    unread = [key for key in counts if key.startswith(_UNREAD) and key != READ]
    most = max(unread, key=lambda key: counts[key].documents, default="")
    example = next((item for item in examples if item["key"] == most), {"id": ""})
    kind = file_format(example["id"].partition(":")[0], source.format)
    if most == "read/invalid_json" and kind == "jsonl":
        return "where a JSON value goes over several lines, set the source's `format: json`"
    if most == "read/missing_text" and kind in ("csv", "tsv"):
        return "set its `text_field` to one of these columns, or `header: true` if its first row names them"
    if most == "read/missing_text":
        return "set its `text_field` to one of these fields"
    if source.shape != "text" and most not in _OF_FILES:
        return f"its records are no {source.shape}: set its `shape` to how they are written (docs/conversations.md)"
    if most in ("read/truncated_file", "read/damaged_file"):
        return "fetch it again, or set its `format` if it is not what its name says"
    return "check its `path`, `format` and `text_field`"

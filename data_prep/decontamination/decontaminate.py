"""Verdict stage `decontaminate`: drops or marks documents that share n-grams with evaluation sets.

After Brown et al. (arXiv:2005.14165, appendix C): an n-gram of an evaluation item that occurs in a training document is
a hit, unless it occurs in more than `max_documents` of them (a common phrase); passages shorter than n count as a
whole, below 8 words not at all. Two passes: hits of every part with their counts, then verdicts. What the stage leaves
for evaluation is `touched.parquet`, a row for every item that a document touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs.common.files import atomic_path, read_json
from configs.common.layout import MANIFEST
from configs.schema.recipe import Recipe
from data_prep.decontamination.evaluation_sets import contents_of, read_items
from data_prep.decontamination.overlap_index import (
    Finder,
    Index,
    Ints,
    Lengths,
    batches,
    build_index,
    load_index,
    save_index,
)
from data_prep.text.ngrams import is_character
from data_prep.workers.stage import Run, Stage, describe_file
from data_prep.workers.verdicts import Part, VerdictWriter, remaining

NAME = "decontaminate"
REASON = "contaminated"
TOUCHED_NAME = "touched.parquet"
_INDEX = "index"
_COMMON = "common"
_EXAMPLES = 5
_DETAIL_WORDS = 20
_HITS = pa.schema([("row", pa.int64()), ("bytes", pa.int64()), ("id", pa.string()), ("grams", pa.list_(pa.int64()))])
_TOUCHES = pa.schema([("item", pa.int64()), ("gram", pa.int64()), ("document", pa.string())])
_TOUCHED = pa.schema(
    [
        ("set", pa.string()),
        ("item", pa.string()),  # its key
        ("ngrams", pa.int64()),  # that it has
        ("touched", pa.int64()),  # of these, found in few enough documents
        ("documents", pa.int64()),  # in which they were found
        ("examples", pa.list_(pa.string())),  # ids of some of them
    ]
)


@dataclass(frozen=True)
class OverlapTask:
    """One part, in either pass."""

    stage: Stage
    part: Part
    drop: bool
    verdicts: bool  # the second pass

    @property
    def name(self) -> str:
        """Name of the unit; the verdicts have that of the part."""
        return self.part.name if self.verdicts else self.hits

    @property
    def hits(self) -> str:
        """Name of the unit of the first pass, and of its files."""
        return f"hits.{self.part.name}"

    @property
    def bytes(self) -> float:
        """Bytes of the part's text."""
        return self.part.bytes


class Decontamination:
    """The stage, for the pipeline.

    Args:
        recipe: with `data.decontaminate` set.
        identify: gives what identifies a file's contents.

    Raises:
        ValueError: a set whose files are missing.
    """

    name = NAME
    code = (
        "decontamination", "chat/messages", "chat/shapes", "chat/tool_messages", "documents/conversion",
        "documents/document", "extraction", "readers", "sources", "text", "workers/verdicts",
        "workers/parts", "workers/manifests",
    )  # fmt: skip

    def __init__(self, recipe: Recipe, identify: Callable[[Any], Any]) -> None:
        settings = recipe.data.decontaminate
        assert settings is not None
        self._recipe = recipe
        self._settings = settings
        self.inputs: dict[str, Any] = {
            "settings": settings.model_dump(mode="json", exclude={"files", "tasks"}),
            "sets": contents_of(recipe, identify),
        }

    def make(self, stage: Stage, parts: Sequence[Part], run: Run) -> dict[str, Any]:
        """Items -> index; parts -> hits; hits -> common n-grams -> verdicts and touched items."""
        settings = self._settings
        if stage.unit(_INDEX) is None:
            index = build_index(read_items(self._recipe), Lengths(settings.ngram, settings.ngram_characters))
            save_index(index, stage.unit_file(_INDEX, ".npz"), stage.unit_file(_INDEX, ".parquet"))
            stage.commit(_INDEX, {})
        index = _load(stage)
        drop = settings.action == "drop"
        tasks = [OverlapTask(stage, part, drop, verdicts=False) for part in parts]
        run("decontaminate: overlaps", find_hits, tasks)
        common = _common(stage, tasks, len(index.passage), settings.max_documents)
        run("decontaminate: verdicts", write_verdicts, [replace(task, verdicts=True) for task in tasks])
        touched = _touched(stage, tasks, index)
        file = stage.directory / TOUCHED_NAME
        with atomic_path(file) as temporary:
            pq.write_table(touched, temporary, compression="zstd", compression_level=1)
        _stored.cache_clear()
        _finder.cache_clear()
        return {
            "files": {TOUCHED_NAME: describe_file(file)},
            "sets": _summary(index, touched),
            "action": settings.action,
            "ngram": settings.ngram,
            "common_ngrams": int(common.sum()),
        }


# --------------------------------------------------------------------------------------------------------------- passes
def find_hits(task: OverlapTask) -> None:
    """First pass: the n-grams of evaluation items in each document of a part, and in how many each was found."""
    finder = _finder(str(task.stage.directory), task.stage.fingerprint)
    found: list[dict[str, Any]] = []

    def documents() -> Iterator[tuple[dict[str, Any], str]]:
        for row, fields in remaining(task.part, ["id", "text", "bytes"]):
            yield {"row": row, "bytes": fields["bytes"], "id": fields["id"]}, fields["text"]

    for documents_of, texts in batches(documents()):
        found += [{**documents_of[number], "grams": grams} for number, grams in finder(texts)]
    with atomic_path(task.stage.unit_file(task.name, ".parquet")) as temporary:
        pq.write_table(pa.Table.from_pylist(found, _HITS), temporary, compression="zstd", compression_level=1)
    grams, counts = np.unique([gram for hit in found for gram in hit["grams"]], return_counts=True)
    with atomic_path(task.stage.unit_file(task.name, ".npy")) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.stack([grams, counts]).astype(np.int64))
    task.stage.commit(task.name, {})


def _common(stage: Stage, tasks: Sequence[OverlapTask], grams: int, most: int) -> np.ndarray:
    """(n-grams,) bool: found in more than `most` documents. Written down for the second pass."""
    totals = np.zeros(grams, dtype=np.int64)
    for task in tasks:
        found, counts = np.load(stage.unit_file(task.name, ".npy"))
        totals[found] += counts
    common: np.ndarray = totals > most
    with atomic_path(stage.unit_file(_COMMON, ".npy")) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.flatnonzero(common))
    return common


def write_verdicts(task: OverlapTask) -> None:
    """Second pass: documents with an n-gram that is not common."""
    index = _load(task.stage)
    common = set(np.load(task.stage.unit_file(_COMMON, ".npy")).tolist())
    writer = VerdictWriter(task.part)
    touches: list[dict[str, Any]] = []
    for hit in pq.read_table(task.stage.unit_file(task.hits, ".parquet"), partitioning=None).to_pylist():
        grams = [gram for gram in hit["grams"] if gram not in common]
        if not grams:
            continue
        say = writer.drop if task.drop else writer.mark
        say(hit["row"], REASON, hit["bytes"], _detail(index, grams))
        touches += [
            {"item": item, "gram": gram, "document": hit["id"]} for gram in grams for item in index.items(gram).tolist()
        ]
    with atomic_path(task.stage.unit_file(f"touches.{task.part.name}", ".parquet")) as temporary:
        pq.write_table(pa.Table.from_pylist(touches, _TOUCHES), temporary, compression="zstd", compression_level=1)
    writer.commit(task.stage)


def _detail(index: Index, grams: Sequence[int]) -> str:
    """The first item touched, and the words found."""
    item = int(index.items(grams[0])[0])
    words = index.words(grams[0])
    shown = "".join(
        word if is_character(word) and is_character(before or word) else f" {word}"
        for before, word in pairwise(["", *words[:_DETAIL_WORDS]])
    ).strip() + (" …" if len(words) > _DETAIL_WORDS else "")
    return f"{index.sets[item]} {index.keys[item]}: {shown}" + (f" (+{len(grams) - 1})" if len(grams) > 1 else "")


# ---------------------------------------------------------------------------------------------------------------- index
@lru_cache(maxsize=1)
def _stored(directory: str, fingerprint: str) -> Index:
    stage = Stage(Path(directory), {})
    return load_index(stage.unit_file(_INDEX, ".npz"), stage.unit_file(_INDEX, ".parquet"))


def _load(stage: Stage) -> Index:
    return _stored(str(stage.directory), stage.fingerprint)


@lru_cache(maxsize=1)
def _finder(directory: str, fingerprint: str) -> Finder:
    """One for all parts that a worker sees: it remembers the words' hashes."""
    return Finder(_stored(directory, fingerprint))


def _touched(stage: Stage, tasks: Sequence[OverlapTask], index: Index) -> pa.Table:
    """The rows of `touched.parquet`, in the order of the items; documents in the order of the parts."""
    grams: dict[int, set[int]] = {}
    documents: dict[int, dict[tuple[int, str], None]] = {}
    for number, task in enumerate(tasks):
        table = pq.read_table(stage.unit_file(f"touches.{task.part.name}", ".parquet"), partitioning=None)
        for item, gram, document in zip(*(column.to_pylist() for column in table.columns), strict=True):
            grams.setdefault(item, set()).add(gram)
            documents.setdefault(item, {})[number, document] = None
    owned: Ints = np.bincount(index.pairs[:, 1], minlength=len(index.keys))
    rows = [
        {
            "set": index.sets[item],
            "item": index.keys[item],
            "ngrams": int(owned[item]),
            "touched": len(grams[item]),
            "documents": len(documents[item]),
            "examples": [identifier for _, identifier in list(documents[item])[:_EXAMPLES]],
        }
        for item in sorted(grams)
    ]
    return pa.Table.from_pylist(rows, _TOUCHED)


def _summary(index: Index, touched: pa.Table) -> dict[str, dict[str, int]]:
    """Per set: its items, those long enough to be compared, and those touched."""
    compared = set(index.pairs[:, 1].tolist())
    found: dict[str, dict[str, int]] = {}
    for number, name in enumerate(index.sets):
        entry = found.setdefault(name, {"items": 0, "compared": 0, "touched": 0})
        entry["items"] += 1
        entry["compared"] += number in compared
    for name in touched["set"].to_pylist():
        found[name]["touched"] += 1
    return found


# ------------------------------------------------------------------------------------------------------- for evaluation
@dataclass(frozen=True)
class Touched:
    """Evaluation items whose n-grams occur in training documents.

    Attributes:
        sets: items, compared and touched of every set that was looked at.
        keys: per set, the keys of the touched items.
        action: `drop` (the documents that touch them were left out of training) or `mark`.
        fingerprint: of the stage.
    """

    sets: dict[str, dict[str, int]]
    keys: dict[str, frozenset[str]]
    action: str
    fingerprint: str


def load_touched(data_directory: Path) -> Touched | None:
    """Reads the stage's result from a data directory. None when the stage was not part of the recipe."""
    directory = data_directory / NAME
    if not (directory / MANIFEST).is_file() or not (directory / TOUCHED_NAME).is_file():
        return None
    manifest = read_json(directory / MANIFEST)
    table = pq.read_table(directory / TOUCHED_NAME, columns=["set", "item"], partitioning=None).to_pylist()
    keys = {
        name: frozenset(row["item"] for row in table if row["set"] == name) for name in dict.fromkeys(manifest["sets"])
    }
    return Touched(manifest["sets"], keys, manifest["action"], manifest["fingerprint"])

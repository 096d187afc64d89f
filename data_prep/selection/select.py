"""Verdict stage `select`: drops the training documents that a rule over code lengths does not choose.

Documents and scores meet by the hash of the text: both go through shuffles, and each range of hashes joins its own.
The values are written in two orders: by document, for the verdicts, and by range, for the boundaries between what stays
and what goes. So memory is bounded, and nothing depends on the order of files or on the workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.common.files import atomic_path, read_json, write_json
from configs.schema.chat import Unit
from configs.schema.data import Data
from configs.schema.selection import Select
from data_prep.dedup.document_index import DocumentIndex
from data_prep.dedup.passes import PASSES_CODE, PartTask, Passes, RangeTask
from data_prep.dedup.shuffle import Exchange, hash_ranges, read_records, write_records
from data_prep.selection.boundaries import START, Block, Key, below, boundaries, ordered_bits, value_of
from data_prep.selection.join import Found, ScoreTask, bits_per_byte, join, put_scores, score_places
from data_prep.selection.score_files import MODELS, located, scored_by
from data_prep.text.hashing import mix
from data_prep.tokens.splits import TRAIN, Split
from data_prep.workers.stage import Run, Stage
from data_prep.workers.verdicts import Part, VerdictWriter, remaining

NAME = "select"
REASON = "selected_out"
_BOUNDARIES = "boundaries"
_NO_GROUP = -1


@dataclass(frozen=True)
class Choosing:
    """What the tasks of the stage need to know.

    Attributes:
        rule: of the recipe.
        seed: of the rule `random`.
        minus: two models are compared.
        splits: of each source.
        groups: of each part, the number of the group that a share is kept of; -1: the part stays whole.
    """

    rule: str
    seed: int
    minus: bool
    splits: Mapping[str, Split]
    groups: Sequence[int]


class Selection:
    """The stage, for the pipeline.

    Args:
        data: with `data.select` set.
        unit: what documents say.
        identify: gives what identifies a file's contents.

    Raises:
        ValueError: when a file with scores is missing.
    """

    name = NAME
    code = ("selection", "text/hashing", "tokens/splits", "chat/messages", "documents/document", "sources",
            *PASSES_CODE)  # fmt: skip

    def __init__(self, data: Data, unit: Unit, identify: Callable[[Any], Any]) -> None:
        settings = data.select
        assert settings is not None
        self._settings = settings
        self._files = [located(getattr(settings, name), f"data.select.{name}") for name in MODELS]
        self._names = settings.sources or [source.name for source in data.sources]
        self._splits = {source.name: Split(source, data.validation_fraction, unit) for source in data.sources}
        self.inputs: dict[str, Any] = {
            "settings": settings.model_dump(mode="json", exclude={*MODELS, "sources"}),
            "sources": sorted(self._names),
            "scores": [[identify(file) for file in files] for files in self._files],
            "split": [data.validation_fraction, unit, {name: one.source.split for name, one in self._splits.items()}],
        }

    def make(self, stage: Stage, parts: Sequence[Part], run: Run) -> dict[str, Any]:
        """Parts -> documents by hash; files -> scores by hash; both -> values -> boundaries -> verdicts."""
        settings = self._settings
        by = {name: one.run for name, one in scored_by(settings).items()}
        groups = self._groups(parts)
        choosing = Choosing(settings.rule, settings.seed, bool(settings.minus), self._splits, groups)
        passes = Passes(stage, parts, run, choosing)
        documents = passes.put("documents", put_documents, width=4)
        ranges = hash_ranges(passes.merge(documents))
        scores = self._scores(stage, passes, run)
        values = passes.exchange("values", 4, len(ranges))
        counted = passes.over_ranges("join", join_range, ranges, documents, values, scores)
        scores.discard()
        found = Found()
        for content in counted:
            found = found.plus(content["found"])
        _refuse_misfits(found, DocumentIndex.of(stage), parts)
        passes.merge(values)
        names = self._names if settings.each_source else ["all"]
        chosen = _choose(stage, settings, names, len(ranges))
        passes.write(write_verdicts, values)
        return {"scored_by": by, "chosen": chosen}

    def _groups(self, parts: Sequence[Part]) -> list[int]:
        numbers = {name: number if self._settings.each_source else 0 for number, name in enumerate(self._names)}
        return [numbers.get(part.source, _NO_GROUP) for part in parts]

    def _scores(self, stage: Stage, passes: Passes[Choosing], run: Run) -> Exchange:
        """The shuffle of all scores, merged.

        Raises:
            ValueError: when rows of a file are no scores.
        """
        places = score_places(self._files)
        scores = Exchange(stage, "scores", 4, max(1, len(places)))
        tasks = [ScoreTask(scores, index, *place) for index, place in enumerate(places)]
        if tasks:
            run("select: read scores", put_scores, tasks)
        else:
            scores.put(0, np.zeros((0, 4), dtype=np.uint64))
        unusable: dict[str, int] = {}
        for unit in [stage.unit(task.name) or {} for task in tasks]:
            unusable[unit["file"]] = unusable.get(unit["file"], 0) + unit["unusable"]
        for file, count in unusable.items():
            if count:
                raise ValueError(
                    f"data.select: {file} has {count:,} rows without a score (NaN, negative, or no hash of a text); "
                    "score these documents again by `replica score`"
                )
        passes.merge(scores)
        return scores


# --------------------------------------------------------------------------------------------------------------- passes
def put_documents(task: PartTask[Choosing]) -> None:
    """Both halves of the hash of each text, its number and bytes: of the documents that are chosen among."""
    choosing, part = task.settings, task.numbered.part
    records: list[tuple[int, int, int, int]] = []
    if choosing.groups[task.numbered.index] != _NO_GROUP:
        split = choosing.splits[part.source]
        for row, fields in remaining(part, split.with_needed(["text", "bytes"])):
            if split(fields) == TRAIN:
                digest = hashlib.blake2b(fields["text"].encode(), digest_size=16).digest()
                halves = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")
                records.append((*halves, task.numbered.base + row, fields["bytes"]))
    task.put(np.array(records, dtype=np.uint64).reshape(-1, 4))
    task.commit()


def join_range(task: RangeTask[Choosing]) -> None:
    """(number, ordered value, hash, bytes) of each document; once more by range, with the group as the first."""
    choosing, documents = task.settings, task.read()
    if choosing.rule == "random":
        seed = mix(np.array([choosing.seed], dtype=np.uint64) + np.uint64(1))
        values, found = mix(documents[:, 0] ^ seed), Found(len(documents))
    else:
        assert task.wanted is not None
        nats, found = join(documents, task.wanted.read(task.low, task.high), 1 + choosing.minus)
        values = ordered_bits(bits_per_byte(nats, documents[:, 3]))
        if choosing.rule == "high":
            values = ~values
    records = np.stack([documents[:, 2], values, documents[:, 0], documents[:, 3]], axis=1)
    task.put(records)
    groups = np.array(choosing.groups, dtype=np.int64)[DocumentIndex.of(task.stage).parts(documents[:, 2])]
    with atomic_path(_range_file(task.stage, task.index)) as temporary, temporary.open("wb") as stream:
        write_records(stream, np.column_stack([groups.astype(np.uint64), records[:, 1:]]))
    task.commit({"found": found.content()})


def _range_file(stage: Stage, index: int) -> Path:
    return stage.unit_file(f"range.{index:06d}", ".records")


def _refuse_misfits(found: Found, index: DocumentIndex, parts: Sequence[Part]) -> None:
    """Raises `ValueError` when documents have no score, or two."""
    for setting, missing, first, conflicts in zip(MODELS, found.missing, found.first, found.conflicts, strict=True):
        if missing:
            assert first is not None
            which = (
                f"{missing:,} of {found.documents:,} documents have no score (the first: {_id_of(first, index, parts)})"
            )
            if missing == found.documents:
                which = f"none of {found.documents:,} documents has a score: these are scores of another corpus"
            raise ValueError(
                f"data.select.{setting}: {which}. A score belongs to a text as it is after all steps before. Score "
                "what this recipe prepares: `replica score RUN --data RECIPE --out FILE.parquet`"
            )
        if conflicts:
            raise ValueError(
                f"data.select.{setting}: {conflicts:,} texts have two scores that differ; take out the file with the "
                "wrong ones"
            )


def _id_of(number: int, index: DocumentIndex, parts: Sequence[Part]) -> str:
    (position,) = index.parts(np.array([number], dtype=np.uint64))
    (place,) = index.describe(np.array([number], dtype=np.uint64))
    part, wanted = parts[position], int(place.rpartition(":")[2])
    return next(str(fields["id"]) for row, fields in remaining(part, ["id"]) if row == wanted)


def write_verdicts(task: PartTask[Choosing]) -> None:
    """Drops the documents outside of the boundaries of their group."""
    choosing, numbered = task.settings, task.numbered
    writer = VerdictWriter(numbered.part)
    group = choosing.groups[numbered.index]
    if group != _NO_GROUP:
        low, high = (tuple(key) for key in read_json(_boundaries_file(task.stage))[str(group)])
        records = task.read()
        goes = ~_inside(records[:, 1], records[:, 2], low, high)
        for number, value, _, size in records[goes].tolist():
            writer.drop(number - numbered.base, REASON, size, _detail(choosing, value, low, high))
    writer.commit(task.stage)


def _detail(choosing: Choosing, value: int, low: Key, high: Key) -> str:
    """Says which value a document has, and which ones stay."""
    if choosing.rule == "random":
        return f"by seed {choosing.seed}"
    unit = "bits per byte" + (" more than the other model" if choosing.minus else "")
    limits = [_shown(choosing.rule, key) for key in (low, high)]
    named = zip(("from", "up to") if choosing.rule != "high" else ("up to", "from"), limits, strict=True)
    kept = " ".join(f"{word} {limit:.3f}" for word, limit in named if limit is not None)
    return f"{_value(choosing.rule, value):.3f} {unit}; kept: {kept}"


# --------------------------------------------------------------------------------------------------------------- choice
def _choose(stage: Stage, settings: Select, names: Sequence[str], ranges: int) -> dict[str, dict[str, Any]]:
    """Finds the boundaries of each group, and writes them down for the workers; returns what is kept.

    Raises:
        ValueError: when nothing is kept of a group.
    """

    def blocks() -> Iterator[Block]:
        for index in range(ranges):
            records = read_records(_range_file(stage, index), 4, 0, 2**64)
            groups, values, hashes, sizes = records.T
            yield groups.astype(np.int64), values, hashes, sizes.astype(np.int64)

    totals = _sums(blocks(), len(names), None)
    first, last = (1 - settings.keep) / 2, (1 + settings.keep) / 2
    shares = (first, last) if settings.rule == "middle" else (0.0, settings.keep)
    targets = {
        (group, side): round(share * total)
        for group, (_, total) in enumerate(totals.tolist())
        for side, share in enumerate(shares)
    }
    found = boundaries(blocks, targets)
    limits = {group: (found[group, 0] if shares[0] else START, found[group, 1]) for group in range(len(names))}
    kept = _sums(blocks(), len(names), limits)
    for name, total, own in zip(names, totals.tolist(), kept.tolist(), strict=True):
        if total[0] and not own[0]:
            raise ValueError(
                f"data.select: keep {settings.keep} of {total[1]:,} bytes ({name}) is less than the first document; "
                "raise it"
            )
    write_json(_boundaries_file(stage), {str(group): keys for group, keys in limits.items()})
    return {
        name: {
            **dict(zip(("documents", "bytes"), total, strict=True)),
            **dict(zip(("kept_documents", "kept_bytes"), own, strict=True)),
            "limits": [_shown(settings.rule, key) for key in limits[group]],
        }
        for group, (name, total, own) in enumerate(zip(names, totals.tolist(), kept.tolist(), strict=True))
    }


def _sums(blocks: Iterator[Block], groups: int, limits: Mapping[int, tuple[Key, Key]] | None) -> np.ndarray:
    """(groups, 2): documents and bytes; with limits, of those inside."""
    sums = np.zeros((groups, 2), dtype=np.int64)
    for of, values, hashes, sizes in blocks:
        for group in np.unique(of).tolist():
            chosen = of == group
            if limits is not None:
                chosen &= _inside(values, hashes, *limits[group])
            sums[group] += (int(chosen.sum()), int(sizes[chosen].sum()))
    return sums


def _inside(values: np.ndarray, hashes: np.ndarray, low: Key, high: Key) -> np.ndarray:
    return ~below(values, hashes, low) & below(values, hashes, high)


def _boundaries_file(stage: Stage) -> Path:
    return stage.unit_file(_BOUNDARIES, ".limits")


def _shown(rule: str, key: Key) -> float | None:
    """The value of a boundary, in bits per byte; None where there is no limit."""
    return None if rule == "random" or key[0] in (0, 2**64) else _value(rule, key[0])


def _value(rule: str, bits: int) -> float:
    return value_of(bits ^ (2**64 - 1) if rule == "high" else bits)

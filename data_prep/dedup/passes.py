"""Runs the passes of a deduplication stage: over all parts, or over ranges of the keys of a shuffle.

Every stage is made of the same three kinds of pass:

    put      each part writes keyed records into a shuffle:      (hash of a line, document) …
    find     each range of keys reads all records with these keys, and writes what it found:      (document, hash) …
    write    each part reads what was found about its documents, and commits their verdicts

`exact` and `repeated_lines` are put, find, write. `substrings` puts and finds twice. `near` finds in several steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from data_prep.dedup.document_index import NumberedPart, number_parts
from data_prep.dedup.shuffle import Exchange, Records, hash_ranges
from data_prep.workers.stage import Run, Stage
from data_prep.workers.verdicts import Part

# Modules that every stage made of these passes depends on, for its fingerprint.
PASSES_CODE = (
    "dedup/passes",
    "dedup/shuffle",
    "dedup/document_index",
    "workers/verdicts",
    "workers/parts",
    "workers/manifests",
)

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class PartTask(Generic[Settings]):
    """One part in one pass.

    Attributes:
        settings: of the stage.
        numbered: the part.
        phase: name of the pass; empty for the last one, whose units are the parts' verdicts.
        source: shuffle that the pass reads, if any.
        result: shuffle that the pass writes to, if any.
    """

    settings: Settings
    numbered: NumberedPart
    phase: str
    source: Exchange | None
    result: Exchange | None

    @property
    def name(self) -> str:
        """Name of the unit; the verdicts have that of the part."""
        return f"{self.phase}.{self.numbered.part.name}" if self.phase else self.numbered.part.name

    @property
    def bytes(self) -> float:
        """Bytes of the part's text."""
        return self.numbered.part.bytes

    @property
    def stage(self) -> Stage:
        """Stage that the unit belongs to."""
        return self.numbered.stage

    def read(self) -> Records:
        """Records of `source` whose key is one of the part's documents, sorted."""
        assert self.source is not None
        return self.source.read(self.numbered.base, self.numbered.end)

    def put(self, records: Records) -> None:
        """Writes all of the part's records to `result`."""
        assert self.result is not None
        self.result.put(self.numbered.index, records)

    def commit(self) -> None:
        """Commits the unit; its files must be in place."""
        self.stage.commit(self.name, {})


@dataclass(frozen=True)
class RangeTask(Generic[Settings]):
    """The keys from `low` to `high` (exclusive) of the shuffle `source` in one pass.

    Attributes:
        settings: of the stage.
        phase: name of the pass.
        index: number of the range.
        bytes: of text behind it, about.
        result: shuffle that the pass writes to.
        wanted: a second one, if any.
    """

    settings: Settings
    phase: str
    index: int
    low: int
    high: int
    bytes: float
    source: Exchange
    result: Exchange
    wanted: Exchange | None

    @property
    def name(self) -> str:
        """Name of the unit."""
        return f"{self.phase}.{self.index:06d}"

    @property
    def stage(self) -> Stage:
        """Stage that the unit belongs to."""
        return self.source.stage

    def read(self) -> Records:
        """Records of `source` whose key is in the range, sorted."""
        return self.source.read(self.low, self.high)

    def put(self, records: Records) -> None:
        """Writes all of the range's records to `result`."""
        self.result.put(self.index, records)

    def commit(self, content: dict[str, Any] | None = None) -> None:
        """Commits the unit; its files must be in place."""
        self.stage.commit(self.name, content or {})


PartFunction = Callable[[PartTask[Settings]], None]
RangeFunction = Callable[[RangeTask[Settings]], None]
KeyRanges = Sequence[tuple[int, int]]


class Passes(Generic[Settings]):
    """The passes of one deduplication stage over its parts.

    Args:
        stage: whose units are committed.
        parts: in the order that decides which document comes first.
        run: runs the units.
        settings: handed to every task.
    """

    def __init__(self, stage: Stage, parts: Sequence[Part], run: Run, settings: Settings) -> None:
        self.stage = stage
        self.bytes = float(sum(part.bytes for part in parts))
        self._run = run
        self._settings = settings
        self._numbered = number_parts(stage, parts)

    # ---------------------------------------------------------------------------------------------- put, find, write
    def put(self, phase: str, function: PartFunction[Settings], width: int, source: Exchange | None = None) -> Exchange:
        """Every part writes records of `width` numbers; returns their shuffle, not merged yet."""
        result = self.exchange(phase, width, len(self._numbered))
        self.over_parts(phase, function, source, result)
        return result

    def find(self, phase: str, function: RangeFunction[Settings], source: Exchange) -> Exchange:
        """Every range of hashed keys of `source` writes records of 2 numbers; returns their shuffle, merged.

        `source` is merged first and deleted afterwards.
        """
        ranges = hash_ranges(self.merge(source))
        result = self.exchange(phase, 2, len(ranges))
        self.over_ranges(phase, function, ranges, source, result)
        self.merge(result)
        return result

    def write(self, function: PartFunction[Settings], source: Exchange) -> list[dict[str, Any]]:
        """Every part commits its verdicts; returns what they committed."""
        return self.over_parts("", function, source)

    # ------------------------------------------------------------------------------------------------- single steps
    def exchange(self, label: str, width: int, writers: int) -> Exchange:
        """A new shuffle inside the stage."""
        return Exchange(self.stage, label, width, writers)

    def merge(self, exchange: Exchange) -> int:
        """Merges what the writers put in; returns the number of records."""
        return exchange.merge(self._run, self.bytes)

    def over_parts(
        self,
        phase: str,
        function: PartFunction[Settings],
        source: Exchange | None = None,
        result: Exchange | None = None,
    ) -> list[dict[str, Any]]:
        """Runs one pass over all parts; returns what their units committed."""
        tasks = [PartTask(self._settings, part, phase, source, result) for part in self._numbered]
        self._run(self._label(phase or "verdicts"), function, tasks)
        return [self.stage.unit(task.name) or {} for task in tasks]

    def over_ranges(
        self,
        phase: str,
        function: RangeFunction[Settings],
        ranges: KeyRanges,
        source: Exchange,
        result: Exchange,
        wanted: Exchange | None = None,
    ) -> list[dict[str, Any]]:
        """Runs one pass over ranges of the merged shuffle `source`, then deletes it; returns what was committed."""
        size = self.bytes / len(ranges)
        tasks = [
            RangeTask(self._settings, phase, index, low, high, size, source, result, wanted)
            for index, (low, high) in enumerate(ranges)
        ]
        self._run(self._label(phase), function, tasks)
        source.discard()
        return [self.stage.unit(task.name) or {} for task in tasks]

    def _label(self, phase: str) -> str:
        return f"{self.stage.name}: {phase}".replace("_", " ")

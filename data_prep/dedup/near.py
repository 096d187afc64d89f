"""Verdict stage `near`: documents much like another, over all sources, by MinHash-LSH.

    parts -> band keys => ranges: candidate pairs => verification by the shingle sets => components => parts

(=> is a shuffle). A document is a node: its number, below the shortfall of its size for `keep: longest`, so that the
smallest node of a group is the one that stays. Candidates are verified in blocks of pairs whose documents lie near each
other; the sets are made a second time from the texts, for documents in a candidate pair alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from configs.schema.data import NearDuplicates
from data_prep.dedup import near_tasks as work
from data_prep.dedup.components import MEMORY_EDGES, components_in_rounds
from data_prep.dedup.document_index import number_parts
from data_prep.dedup.shingles import choose_bands
from data_prep.dedup.shuffle import Exchange, constant, hash_ranges
from data_prep.work.stage import Stage
from data_prep.work.verdicts import Part, Run

# Share of pairs at the very threshold that may be missed; without verification candidates below it count, so that the
# curve is put lower, where fewer of them are caught.
MISSES = 0.01
MISSES_UNVERIFIED = 0.1
# Pairs that one task verifies: a second or so.
VERIFY_PAIRS = 50_000


class Near:
    """The stage, for the pipeline."""

    name = "near"
    code = (
        *("dedup/near", "dedup/near_tasks", "dedup/pairs", "dedup/components", "dedup/shingles", "dedup/shuffle"),
        *("dedup/document_index", "text/hashing", "work/verdicts", "work/parts"),
    )

    def __init__(self, settings: NearDuplicates, memory_edges: int = MEMORY_EDGES) -> None:
        self.inputs: dict[str, Any] = settings.model_dump()
        self.bands, self.rows = bands_and_rows(settings)
        self._settings = settings
        self._memory_edges = memory_edges

    def make(self, stage: Stage, parts: Sequence[Part], run: Run) -> dict[str, Any]:
        """All phases; the manifest gets bands, rows and the number of pairs."""
        return _Making(self, stage, parts, run).make()


class _Making:
    """The phases of one stage in order."""

    def __init__(self, near: Near, stage: Stage, parts: Sequence[Part], run: Run) -> None:
        settings = near._settings
        self._near = work.Near(
            stage, settings.similarity, settings.shingle, settings.unit, settings.keep, settings.verify,
            near.bands, near.rows, len(parts),
        )  # fmt: skip
        self._memory_edges = near._memory_edges
        self._stage, self._run = stage, run
        self._numbered = number_parts(stage, parts)
        self._sizes = {part.name: float(part.bytes) for part in parts}
        self._total = sum(self._sizes.values())

    def make(self) -> dict[str, Any]:
        bands = self._exchange("bands", 2, len(self._numbered))
        self._parts("bands", "signatures", work.put_bands, result=bands)
        ranges = hash_ranges(bands.merge(self._run, self._total))
        edges = self._exchange("edges", 3, len(ranges))
        counts: dict[str, int] = {}
        if self._near.verify:
            candidates, wanted = self._exchange("candidates", 3, len(ranges)), self._exchange("wanted", 1, len(ranges))
            self._ranges("pairs", work.find_pairs, ranges, bands, candidates, wanted)
            wanted.merge(self._run, self._total)
            self._parts("sets", "shingle sets", work.make_sets, source=wanted)
            ranges = hash_ranges(candidates.merge(self._run, self._total), VERIFY_PAIRS)
            edges = self._exchange("edges", 3, len(ranges))
            units = self._ranges("verify", work.verify_pairs, ranges, candidates, edges)
            counts = {key: sum(unit[key] for unit in units) for key in ("candidates", "verified")}
        else:
            self._ranges("pairs", work.find_pairs, ranges, bands, edges)
        found = self._components(edges)
        self._parts("", "verdicts", work.write_verdicts, source=found)
        return {"bands": self._near.bands, "rows": self._near.rows, **counts}

    def _components(self, edges: Exchange) -> Exchange:
        """(document, the one that stays), for the parts to read."""
        records = edges.merge(self._run, self._total)
        ranges, label = [(0, 2**64)], work.label_all
        if records > 2 * self._memory_edges:
            edges, records = components_in_rounds(edges, records, self._run, self._total)
            ranges, label = hash_ranges(records), work.label_stars
        found = self._exchange("found", 2, len(ranges))
        self._ranges("labels", label, ranges, edges, found)
        found.merge(self._run, self._total)
        return found

    def _exchange(self, label: str, width: int, writers: int) -> Exchange:
        return Exchange(self._stage, label, width, writers)

    def _parts(
        self, phase: str, what: str, function: Callable[[work.PartTask], None],
        source: Exchange | None = None, result: Exchange | None = None,
    ) -> None:  # fmt: skip
        tasks = [work.PartTask(self._near, part, phase, source, result) for part in self._numbered]
        missing = [task for task in tasks if self._stage.unit(task.name) is None]
        prefix = f"{phase}." if phase else ""
        self._run(
            f"near: {what}", function, missing, lambda name: self._sizes.get(name.removeprefix(prefix), 0.0),
            self._total,
        )  # fmt: skip

    def _ranges(
        self, phase: str, function: Callable[[work.RangeTask], None], ranges: Sequence[tuple[int, int]],
        source: Exchange, result: Exchange, wanted: Exchange | None = None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        tasks = [
            work.RangeTask(self._near, phase, index, low, high, source, result, wanted)
            for index, (low, high) in enumerate(ranges)
        ]
        missing = [task for task in tasks if self._stage.unit(task.name) is None]
        self._run(f"near: {phase}", function, missing, constant(self._total / len(ranges)), self._total)
        source.discard()
        return [self._stage.unit(task.name) or {} for task in tasks]


def bands_and_rows(settings: NearDuplicates) -> tuple[int, int]:
    """Those of the settings; what they leave open is chosen from the similarity."""
    misses = MISSES if settings.verify else MISSES_UNVERIFIED
    return choose_bands(settings.similarity, misses, settings.bands, settings.rows)

"""Verdict stage `near`: drops documents similar to an earlier one, over all sources, by MinHash-LSH.

    parts -> band keys => ranges: candidate pairs => verification by the shingle sets => components => parts

(=> is a shuffle). A document is a node: its number, below the shortfall of its size for `keep: longest`, so that the
smallest node of a group is the one that stays. Candidates are verified in blocks of pairs whose documents lie near each
other; the sets are made a second time from the texts, for documents in a candidate pair alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from configs.schema.data import NearDuplicates
from data_prep.dedup import near_tasks as work
from data_prep.dedup.components import MEMORY_EDGES, components_in_rounds
from data_prep.dedup.minhash import choose_bands
from data_prep.dedup.passes import PASSES_CODE, Passes
from data_prep.dedup.shuffle import Exchange, hash_ranges
from data_prep.workers.stage import Run, Stage
from data_prep.workers.verdicts import Part

# Share of pairs at the very threshold that may be missed; without verification candidates below it count, so that the
# curve is put lower, where fewer of them are caught.
MISSES = 0.01
MISSES_UNVERIFIED = 0.1
# Pairs that one task verifies: a second or so.
VERIFY_PAIRS = 50_000


class NearDeduplication:
    """The stage, for the pipeline."""

    name = "near"
    code = (
        *(
            "dedup/near",
            "dedup/near_tasks",
            "dedup/pairs",
            "dedup/components",
            "dedup/shingles",
            "dedup/minhash",
            "text/hashing",
            "text/words",
        ),
        *PASSES_CODE,
    )

    def __init__(self, settings: NearDuplicates, memory_edges: int = MEMORY_EDGES) -> None:
        self.inputs: dict[str, Any] = settings.model_dump()
        self.bands, self.rows = bands_and_rows(settings)
        self._settings = settings
        self._memory_edges = memory_edges

    def make(self, stage: Stage, parts: Sequence[Part], run: Run) -> dict[str, Any]:
        """All passes; the manifest gets bands, rows and the numbers of candidate and verified pairs."""
        near = work.NearSettings.of(self._settings, self.bands, self.rows, len(parts))
        passes = Passes(stage, parts, run, near)
        bands = passes.put("bands", work.put_bands, width=2)
        ranges = hash_ranges(passes.merge(bands))
        counts: dict[str, int] = {}
        if near.verify:
            edges, counts = _verified(passes, bands, ranges)
        else:
            edges = passes.exchange("edges", 3, len(ranges))
            passes.over_ranges("pairs", work.find_pairs, ranges, bands, edges)
        components = self._components(passes, run, edges)
        passes.write(work.write_verdicts, components)
        return {"bands": self.bands, "rows": self.rows, **counts}

    def _components(self, passes: Passes[work.NearSettings], run: Run, edges: Exchange) -> Exchange:
        """(document, the one of its component that stays), for the parts to read."""
        records = passes.merge(edges)
        ranges, label = [(0, 2**64)], work.label_all
        if records > 2 * self._memory_edges:
            edges, records = components_in_rounds(edges, records, run, passes.bytes)
            ranges, label = hash_ranges(records), work.label_stars
        components = passes.exchange("labels", 2, len(ranges))
        passes.over_ranges("labels", label, ranges, edges, components)
        passes.merge(components)
        return components


def _verified(
    passes: Passes[work.NearSettings], bands: Exchange, ranges: list[tuple[int, int]]
) -> tuple[Exchange, dict[str, int]]:
    """The edges between documents that are similar enough, and how many candidates there were."""
    candidates, wanted = passes.exchange("candidates", 3, len(ranges)), passes.exchange("wanted", 1, len(ranges))
    passes.over_ranges("pairs", work.find_pairs, ranges, bands, candidates, wanted)
    passes.merge(wanted)
    passes.over_parts("shingle_sets", work.make_sets, source=wanted)
    wanted.discard()
    ranges = hash_ranges(passes.merge(candidates), VERIFY_PAIRS)
    edges = passes.exchange("edges", 3, len(ranges))
    units = passes.over_ranges("verify", work.verify_pairs, ranges, candidates, edges)
    return edges, {key: sum(unit[key] for unit in units) for key in ("candidates", "verified")}


def bands_and_rows(settings: NearDuplicates) -> tuple[int, int]:
    """Bands and rows of the settings. Chooses from the similarity what they leave open."""
    misses = MISSES if settings.verify else MISSES_UNVERIFIED
    return choose_bands(settings.similarity, misses, settings.bands, settings.rows)

"""Joins documents and scores by the hash of the text, a range of hashes at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.dedup.shuffle import Exchange, Records, starts_of_runs

TASK_ROWS = 1_000_000
# Scores of one text by one model differ by rounding, as it lay in other batches.
_ROUNDING = 1e-3
_HASH = r"^[0-9a-f]{32}$"

Floats = npt.NDArray[np.float64]


# --------------------------------------------------------------------------------------------------------------- scores
@dataclass(frozen=True)
class ScoreTask:
    """Some row groups of a file with scores.

    Attributes:
        exchange: takes the records.
        index: number of the task.
        model: 0 for `scores`, 1 for `minus`.
        file: to read.
        groups: first row group, and the one after the last.
        bytes: of the file behind them, for the progress bar.
    """

    exchange: Exchange
    index: int
    model: int
    file: Path
    groups: tuple[int, int]
    bytes: float

    @property
    def name(self) -> str:
        """Name of the unit."""
        return f"scored.{self.index:06d}"


def score_places(files: Sequence[Sequence[Path]]) -> list[tuple[int, Path, tuple[int, int], float]]:
    """Cuts files into stretches of about `TASK_ROWS` rows: (model, file, row groups, bytes)."""
    found = []
    for model, own in enumerate(files):
        for file in own:
            metadata = pq.read_metadata(file)
            rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
            edges = np.flatnonzero(np.diff(np.cumsum([0, *rows]) // TASK_ROWS)) + 1
            for first, last in zip([0, *edges.tolist()], [*edges.tolist(), len(rows)], strict=True):
                if first < last:
                    share = sum(rows[first:last]) / max(1, metadata.num_rows)
                    found.append((model, file, (first, last), share * file.stat().st_size))
    return found


def put_scores(task: ScoreTask) -> None:
    """Both halves of the hash, the model, and nats. Rows that are no scores are counted and left out."""
    with pq.ParquetFile(task.file) as file:
        table = file.read_row_groups(range(*task.groups), columns=["hash", "nats"], use_threads=False)
    nats = np.asarray(table["nats"].cast(pa.float64()).to_numpy(), dtype=np.float64)  # null: NaN
    known = pc.match_substring_regex(table["hash"].cast(pa.string()), _HASH).to_numpy() == 1
    usable = np.isfinite(nats) & (nats >= 0) & known
    halves = _halves(np.asarray(table["hash"].to_pylist(), dtype=object)[usable].tolist())
    model = np.full(len(halves), task.model, dtype=np.uint64)
    records = np.stack([*halves.T, model, (nats[usable] + 0.0).view(np.uint64)], axis=1)
    task.exchange.put(task.index, records)
    task.exchange.stage.commit(task.name, {"unusable": int((~usable).sum()), "file": str(task.file)})


def _halves(hashes: Sequence[str]) -> Records:
    """Both halves of hexadecimal hashes, (n, 2)."""
    data = np.frombuffer(bytes.fromhex("".join(hashes)), dtype=">u8")
    return data.astype(np.uint64).reshape(-1, 2)


# ----------------------------------------------------------------------------------------------------------------- join
@dataclass(frozen=True)
class Found:
    """How documents and scores fit, for `scores` and `minus` each.

    Attributes:
        documents: that need scores.
        missing: documents without a score.
        first: number of the first of them; None: there is none.
        conflicts: texts with two scores that differ.
    """

    documents: int = 0
    missing: tuple[int, ...] = (0, 0)
    first: tuple[int | None, ...] = (None, None)
    conflicts: tuple[int, ...] = (0, 0)

    def content(self) -> dict[str, Any]:
        """For a unit's file."""
        return asdict(self)

    def plus(self, content: Mapping[str, Any]) -> Found:
        """Adds what a unit found."""
        pairs = zip(self.first, content["first"], strict=True)
        first = [min((one for one in pair if one is not None), default=None) for pair in pairs]
        return replace(
            self,
            documents=self.documents + content["documents"],
            missing=tuple(np.add(self.missing, content["missing"]).tolist()),
            first=tuple(first),
            conflicts=tuple(np.add(self.conflicts, content["conflicts"]).tolist()),
        )


def join(documents: Records, scores: Records, models: int) -> tuple[Floats, Found]:
    """Looks up the nats of each document; less those of the second model, where there are two.

    Args:
        documents: (n, 4): both halves of the hash, the number and the bytes; sorted.
        scores: (m, 4): both halves of the hash, the model and nats; sorted.
        models: 1 or 2.

    Returns:
        (n,) nats, NaN where a score is missing, and how documents and scores fit.
    """
    nats = np.zeros(len(documents))
    found = Found(len(documents))
    for model in range(models):
        own = scores[scores[:, 2] == model]
        starts = starts_of_runs(own[:, 0], own[:, 1])
        ends = np.append(starts[1:], len(own))[: len(starts)] - 1
        least, most = (own[places, 3].copy().view(np.float64) for places in (starts, ends))
        conflicts = int((most - least > _ROUNDING * most).sum())
        values = _looked_up(own[starts, :2], least, documents[:, :2])
        missing = np.isnan(values)
        first = int(documents[missing, 2].min()) if missing.any() else None
        of: list[tuple[int, int | None, int]] = [(0, None, 0), (0, None, 0)]
        of[model] = (int(missing.sum()), first, conflicts)
        counts, firsts, differing = zip(*of, strict=True)
        found = found.plus({"documents": 0, "missing": counts, "first": firsts, "conflicts": differing})
        nats += values * (-1) ** model
    return nats, found


def _looked_up(keys: Records, values: Floats, wanted: Records) -> Floats:
    """(n,) value of each wanted key, NaN where there is none. Keys (k, 2) differ; `wanted` (n, 2) may repeat."""
    both = np.concatenate([keys, wanted])
    order = np.lexsort((np.arange(len(both)) >= len(keys), both[:, 1], both[:, 0]))
    is_key = order < len(keys)
    last = np.maximum.accumulate(np.where(is_key, np.arange(len(order)), -1)) if len(order) else order
    found = np.full(len(wanted), math.nan)
    for_wanted = ~is_key & (last >= 0)
    places, candidates = order[for_wanted] - len(keys), order[last[for_wanted]]
    same = (keys[candidates] == wanted[places]).all(axis=1)
    found[places[same]] = values[candidates[same]]
    return found


def bits_per_byte(nats: Floats, size: Records) -> Floats:
    """Nats per document as bits per byte of its text, (n,)."""
    return nats / math.log(2) / np.maximum(size, np.uint64(1)).astype(np.float64)

"""Keeps the log-probability of every answer under the model that training starts from, as a column beside the data.

The training engine computes it with the starting weights, before the first step: at every ZeRO stage, by the kernels of
training, and without a second model in memory. The column is a pure function of these weights, the model's settings,
the data and the precision, whose fingerprint its name has. It is made once, part by part, so that a killed run goes on
where it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.common.files import atomic_path, fingerprint
from configs.common.progress import progress_bar
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest, SourceShards
from pretrain.batches.unit_rows import References, UnitRows
from pretrain.batches.units import last_answer
from pretrain.engine.engine import Engine
from pretrain.objectives.pair_sums import answer_log_probs

REFERENCE_VERSION = 1  # raise it when the same weights and data come to mean other numbers
PART_DOCUMENTS = 1024
Column = NDArray[np.float64]


class StoredReference:
    """The column of one data directory and one set of starting weights.

    Values stand in the order of the manifest: training sources, then validation sources, a number a document.
    """

    def __init__(self, recipe: Recipe, data: DataManifest, base: str, precision: str) -> None:
        """`base`: fingerprint of the starting weights.

        The recipe's model and seed count too: other rotations give other numbers with the same weights, and rows that
        pad the vocabulary further than in these weights are drawn.
        """
        own = [recipe.model.model_dump(mode="json"), recipe.seed]
        key = fingerprint([REFERENCE_VERSION, base, data.fingerprint, precision, *own])
        self._data, self._context = data, recipe.model.context_length
        self.file = data.directory / f"reference-{base[:16]}-{key[:8]}.npy"
        self._parts = self.file.with_suffix(".parts")
        self._sources = [*data.train, *data.validation]
        self.documents = sum(source.documents for source in self._sources)

    def is_made(self) -> bool:
        """Whether the column lies beside the data."""
        return self.file.is_file()

    def read(self) -> tuple[References, References]:
        """The values of the training and the validation sources by their names.

        Raises:
            ValueError: when the file is not what was written.
        """
        column = _checked(self.file, self.documents)
        found, start = list[dict[str, Column]](), 0
        for sources in (self._data.train, self._data.validation):
            of_split: dict[str, Column] = {}
            for source in sources:
                of_split[source.name] = column[start : start + source.documents]
                start += source.documents
            found.append(of_split)
        return found[0], found[1]

    def make(self, engine: Engine) -> None:
        """Computes the column with the engine's present weights; every rank must call it.

        Raises:
            ValueError: when a log-probability is not finite, or the column cannot be written.
        """
        rows = UnitRows(self._sources, self._data.vocab, self._context, last_answer)
        documents = _listed(self._sources)
        parts = range(0, len(documents), PART_DOCUMENTS)
        # Rank 0's disk decides what is there, because machines may not share it.
        known = engine.gather({first: _read_part(self._part(first)) for first in parts} if engine.is_main else None)[0]
        with progress_bar("reference", len(documents), enabled=engine.is_main) as bar:
            for first in parts:
                chosen = documents[first : first + PART_DOCUMENTS]
                if known[first] is None or len(known[first]) != len(chosen):
                    known[first] = _scored(engine, rows, chosen)
                    if engine.is_main:
                        _write(self._part(first), known[first])
                bar.update(first + len(chosen))
        column = np.concatenate([known[first] for first in parts]) if documents else np.zeros(0)
        if not np.isfinite(column).all():
            place = int(np.flatnonzero(~np.isfinite(column))[0])
            raise ValueError(
                f"the log-probability of document {place} under the reference is {column[place]}; its weights are not "
                "usable: start from another checkpoint"
            )
        if engine.ranks.local_rank == 0 and not self.is_made():
            _write(self.file, column)
        engine.gather(None)
        if engine.is_main:
            shutil.rmtree(self._parts, ignore_errors=True)

    def _part(self, first: int) -> Path:
        return self._parts / f"{first:012d}.npy"


def load_reference(
    stored: StoredReference, engine: Engine, set_starting_weights: Callable[[], None]
) -> tuple[References, References]:
    """The column's values, which are computed first where a machine does not have them; every rank must call it."""
    if not all(engine.gather(stored.is_made())):
        set_starting_weights()
        stored.make(engine)
    return stored.read()


def _listed(sources: Sequence[SourceShards]) -> list[tuple[int, int]]:
    return [(number, document) for number, source in enumerate(sources) for document in range(source.documents)]


def _scored(engine: Engine, rows: UnitRows, documents: Sequence[tuple[int, int]]) -> Column:
    """Log-probability of each document's last answer, in their order, on every rank."""
    rank, ranks, size = engine.rows.rank, engine.rows.count, engine.plan.micro_batch
    mine = documents[rank::ranks]
    own: list[float] = []
    # The same number of forward passes on every rank, because ZeRO-3 gathers weights in each.
    for start in range(0, -(-len(documents) // (ranks * size)) * size, size):
        batch = rows.batch(mine[start : start + size], rows=size).rows(0, size)
        sums = answer_log_probs(engine.log_probs(batch), batch.weights.to(engine.device))
        own += sums[: len(mine[start : start + size])].tolist()
    column = np.zeros(len(documents))
    for number, found in engine.gather((rank, own)):
        column[number::ranks] = found
    return column


def _read_part(file: Path) -> Column | None:
    try:
        part: Column = np.load(file, allow_pickle=False)
    except (OSError, ValueError):
        return None  # not made yet
    return part


def _checked(file: Path, documents: int) -> Column:
    advice = f"delete {file}, and it is made again"
    try:
        column: Column = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}); {advice}") from error
    if column.shape != (documents,) or column.dtype != np.float64 or not np.isfinite(column).all():
        raise ValueError(f"{file} does not hold a finite number for each of {documents:,} documents; {advice}")
    return column


def _write(file: Path, column: Column) -> None:
    """Writes under another name, reads it back, and renames."""
    try:
        with atomic_path(file) as temporary:
            with temporary.open("wb") as stream:
                np.save(stream, column)
            with temporary.open("rb") as stream:
                if not np.array_equal(np.load(stream), column, equal_nan=True):
                    raise ValueError(f"{file}: the disk gave back other numbers than were written")
    except PermissionError as error:
        raise ValueError(
            f"the reference column cannot be written to {file} ({error}); make the directory writable"
        ) from error

"""Divides rows of the batch between ranks, each with a slice of the tokens: sequence parallelism.

Everything but attention works on tokens apart. Around attention two all-to-alls change what is divided: each rank gets
all tokens for some of the heads, and then its slice for all heads again (DeepSpeed Ulysses, arXiv:2309.14509). To
DeepSpeed all ranks are data-parallel, so ZeRO partitions over all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from configs.schema.recipe import Recipe
from configs.schema.train import Parallel
from pretrain.batches.source import Batch, Batches
from pretrain.model.sequence_group import SequenceGroup
from pretrain.model.transformer import Transformer
from pretrain.parallel.divisible import require_multiple
from pretrain.parallel.ranks import Ranks


@dataclass(frozen=True)
class RowSlice:
    """The rows of the batch that this rank has, and its slice of their tokens.

    For example, rank 3 of 4, two of which share a row: the second group of two (`rank` 1 of `count` 2), the second half
    of each row (`index` 1 of `slices` 2).
    """

    rank: int  # of this rank's group, among the groups of ranks that share rows
    count: int  # such groups
    index: int  # of the slice of each row, from 0
    slices: int  # of each row: as many as ranks share it, one after the other

    def cut(self, batch: Batch) -> Batch:
        """This rank's slice of whole rows; what it counts of whole rows is counted on the first rank alone."""
        if self.slices == 1:
            return batch
        width = batch.tokens.shape[1] // self.slices
        columns = slice(self.index * width, (self.index + 1) * width)
        tensors = {name: getattr(batch, name) for name in ("tokens", "targets", "weights", "positions")}
        sliced = {name: value[:, columns].contiguous() for name, value in tensors.items() if value is not None}
        assert not batch.columns and batch.count is None and batch.lengths is None  # see `check_sequence`
        read = None if batch.read is None else 0 if self.index else batch.read
        return replace(batch, **sliced, target_bytes=0 if self.index else batch.target_bytes, read=read)


def row_slice(ranks: Ranks, parallel: Parallel) -> RowSlice:
    """This rank's slice. Consecutive ranks, which are near each other in the network, share rows, or have the same."""
    sharing, slices = parallel.sharing, parallel.sequence
    return RowSlice(ranks.rank // sharing, ranks.count // sharing, ranks.rank % slices, slices)


class SlicedBatches:
    """A source of which each rank takes its slice."""

    def __init__(self, source: Batches[Any], rows: RowSlice) -> None:
        self._source, self._rows = source, rows

    @property
    def windows(self) -> int:
        """Rows of one epoch."""
        return self._source.windows

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Any:
        """This rank's slice of the rows of group `rank` of `ranks`."""
        return self._rows.cut(self._source.batch(step, rank, ranks))


def split_rows(model: Transformer, rows: RowSlice) -> None:
    """Makes the model work on slices of rows; does nothing when rows are whole."""
    if rows.slices > 1:
        model.sequence = SequenceGroup(rows.rank, rows.count, rows.index, rows.slices)
        for block in model.blocks:
            block.attention.sequence = model.sequence  # type: ignore[union-attr]


def check_sequence(recipe: Recipe) -> None:
    """Raises `ValueError` when heads or tokens cannot be divided over `train.parallel.sequence` ranks."""
    model = recipe.model
    sizes = {
        "model.num_heads": model.num_heads,
        "model.num_kv_heads": model.kv_heads,
        "model.context_length": model.context_length,
    }
    require_multiple("train.parallel.sequence", sizes, recipe.train.parallel.sequence)

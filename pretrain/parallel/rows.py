"""Sequence parallelism: several ranks share a row of the batch, each with a slice of its tokens.

Everything but attention works on tokens apart. Around attention two all-to-alls change what is split: each rank gets
all tokens for a part of the heads, and then its slice for all heads again (DeepSpeed Ulysses, arXiv:2309.14509). To
DeepSpeed all ranks are data-parallel, so ZeRO partitions over all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from configs.schema.recipe import Recipe
from configs.schema.train import Parallel
from pretrain.batches.source import Batch, Batches
from pretrain.model.sequence_group import SequenceGroup
from pretrain.model.transformer import Transformer
from pretrain.parallel.ranks import Ranks


@dataclass(frozen=True)
class RowShare:
    """Which rows of the batch this rank has, and which slice of their tokens."""

    rank: int  # of the groups of ranks that share rows
    count: int  # such groups
    part: int  # of each row
    parts: int  # ranks that share a row, one after the other

    def cut(self, batch: Batch) -> Batch:
        """This rank's slice of whole rows; their bytes are counted on the first rank alone."""
        if self.parts == 1:
            return batch
        width = batch.tokens.shape[1] // self.parts
        columns = slice(self.part * width, (self.part + 1) * width)
        tensors = {name: getattr(batch, name) for name in ("tokens", "targets", "weights", "positions")}
        sliced = {name: value[:, columns].contiguous() for name, value in tensors.items() if value is not None}
        return replace(batch, **sliced, target_bytes=0 if self.part else batch.target_bytes)


def row_share(ranks: Ranks, parallel: Parallel) -> RowShare:
    """Consecutive ranks, which are near each other in the network, share rows, or have the same."""
    sharing, parts = parallel.sharing, parallel.sequence
    return RowShare(ranks.rank // sharing, ranks.count // sharing, ranks.rank % parts, parts)


class SlicedBatches:
    """A source of batches of which each rank takes its slice."""

    def __init__(self, source: Batches, share: RowShare) -> None:
        self._source, self._share = source, share

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """This rank's slice of the rows of group `rank` of `ranks`."""
        return self._share.cut(self._source.batch(step, rank, ranks))


def split_rows(model: Transformer, share: RowShare) -> None:
    """Makes the model work on slices of rows; does nothing when rows are whole."""
    if share.parts > 1:
        model.sequence = SequenceGroup(share.rank, share.count, share.part, share.parts)
        for block in model.blocks:
            block.attention.sequence = model.sequence  # type: ignore[union-attr]


def check_sequence(recipe: Recipe) -> None:
    """Raises `ValueError` when heads or tokens cannot be divided over `train.parallel.sequence` ranks."""
    parts, model = recipe.train.parallel.sequence, recipe.model
    sizes = {
        "model.num_heads": model.num_heads,
        "model.num_kv_heads": model.kv_heads,
        "model.context_length": model.context_length,
    }
    for name, size in sizes.items():
        if size % parts:
            raise ValueError(f"train.parallel.sequence {parts} needs {name} to be a multiple of it, not {size}")

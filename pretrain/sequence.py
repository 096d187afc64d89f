"""Sequence parallelism: several ranks share a row of the batch, each with a slice of its tokens.

Everything but attention works on tokens apart. Around attention two all-to-alls change what is split: each rank gets
all tokens for a part of the heads, and then its slice for all heads again (DeepSpeed Ulysses, arXiv:2309.14509). To
DeepSpeed all ranks are data-parallel, so ZeRO partitions over all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single_autograd

from configs.recipe import Recipe
from configs.train_sections import Parallel
from pretrain.batches import Batch, Batches
from pretrain.model import Transformer
from pretrain.ranks import Ranks


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


class SequenceGroup:
    """The ranks that share rows with this one."""

    def __init__(self, share: RowShare) -> None:
        """Every rank must make one at the same time."""
        self.part, self.parts = share.part, share.parts
        for number in range(share.count):
            group = dist.new_group(list(range(number * share.parts, (number + 1) * share.parts)))
            if number == share.rank:
                self.group = group

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, H, T/N, E) of all heads -> (B, H/N, T, E) of all tokens."""
        batch, heads, length, width = x.shape
        x = x.view(batch, self.parts, heads // self.parts, length, width).transpose(0, 1)
        x = self._exchange(x)  # (N, B, H/N, T/N, E): one slice of the tokens from each rank
        return x.permute(1, 2, 0, 3, 4).flatten(2, 3)

    def join_heads(self, x: Tensor) -> Tensor:
        """(B, H/N, T, E) -> (B, H, T/N, E), the way back."""
        batch, heads, length, width = x.shape
        x = x.reshape(batch, heads, self.parts, length // self.parts, width).permute(2, 0, 1, 3, 4)
        x = self._exchange(x)  # (N, B, H/N, T/N, E): one part of the heads from each rank
        return x.transpose(0, 1).flatten(1, 2)

    def gather_columns(self, x: Tensor) -> Tensor:
        """(B, T/N) of each rank -> (B, T); without gradient."""
        parts = [torch.empty_like(x) for _ in range(self.parts)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts, dim=1)

    def _exchange(self, x: Tensor) -> Tensor:
        return all_to_all_single_autograd(x.contiguous(), None, None, self.group)


def split_rows(model: Transformer, share: RowShare) -> None:
    """Makes the model work on slices of rows; does nothing when rows are whole."""
    if share.parts > 1:
        model.sequence = SequenceGroup(share)
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

"""Exchanges heads for tokens between the ranks that share rows (DeepSpeed Ulysses, arXiv:2309.14509).

Around attention two all-to-alls change what is split: each rank gets all tokens for a part of the heads, and then its
slice of the tokens for all heads again. `pretrain/parallel/rows.py` decides who shares rows with whom.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single_autograd


class SequenceGroup:
    """The ranks that share rows with this one.

    Args:
        group: number of this rank's group, from 0.
        groups: how many such groups there are; `slices` consecutive ranks make one.
        index: which slice of each row this rank has, from 0.
        slices: ranks that share a row.
    """

    def __init__(self, group: int, groups: int, index: int, slices: int) -> None:
        """Every rank must make one at the same time."""
        self.index, self.slices = index, slices
        for number in range(groups):  # every rank takes part in making every group
            members = dist.new_group(list(range(number * slices, (number + 1) * slices)))
            if number == group:
                self.group = members

    def tokens_to_heads(self, x: Tensor) -> Tensor:
        """Changes what is divided: (B, H, T/N, E) with all heads -> (B, H/N, T, E) with all tokens."""
        batch, heads, length, width = x.shape
        x = x.view(batch, self.slices, heads // self.slices, length, width).transpose(0, 1)
        x = self._exchange(x)  # (N, B, H/N, T/N, E): one slice of the tokens from each rank
        return x.permute(1, 2, 0, 3, 4).flatten(2, 3)

    def heads_to_tokens(self, x: Tensor) -> Tensor:
        """The way back: (B, H/N, T, E) -> (B, H, T/N, E)."""
        batch, heads, length, width = x.shape
        x = x.reshape(batch, heads, self.slices, length // self.slices, width).permute(2, 0, 1, 3, 4)
        x = self._exchange(x)  # (N, B, H/N, T/N, E): one part of the heads from each rank
        return x.transpose(0, 1).flatten(1, 2)

    def gather_columns(self, x: Tensor) -> Tensor:
        """(B, T/N) of each rank -> (B, T); without gradient."""
        parts = [torch.empty_like(x) for _ in range(self.slices)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts, dim=1)

    def _exchange(self, x: Tensor) -> Tensor:
        return all_to_all_single_autograd(x.contiguous(), None, None, self.group)

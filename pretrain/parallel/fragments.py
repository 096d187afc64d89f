"""Describes which elements of which parameter a rank keeps in fp32, whatever divided them.

ZeRO lays fp32 weights and optimizer moments out in flat buffers that depend on its stage and the number of ranks. Here
they become `Fragment`s: live views into those buffers, each with its parameter's name and its offset in it. A
checkpoint of fragments loads at any stage and any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

# AdamW's, for tensors that the optimizer has not made a state for yet.
MOMENTS = ("exp_avg", "exp_avg_sq")


def remember_shapes(parameters: Iterable[nn.Parameter]) -> None:
    """Notes the shape of parameters that are still whole; what is noted already stays."""
    for parameter in parameters:
        if not hasattr(parameter, "whole_shape"):
            parameter.whole_shape = parameter.shape  # type: ignore[attr-defined]


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of the whole parameter, also where ZeRO-3 or tensor parallelism has left a rank only a piece of it."""
    shard: Shard | None = getattr(parameter, "shard", None)
    if shard is not None:
        return shard.shape
    shape: torch.Size = getattr(parameter, "whole_shape", parameter.shape)
    return shape


class ShardRows(NamedTuple):
    """Rows of a shard: `rows` runs of `width` elements, one after the other in the shard from `start` on.

    In the whole flattened parameter the first begins at `offset`, and each next one `stride` after the one before. For
    example, columns 2 and 3 of a matrix of 3 x 4 are ShardRows(start=0, offset=2, rows=3, width=2, stride=4): elements
    2, 3, 6, 7, 10 and 11 of the matrix.
    """

    start: int
    offset: int
    rows: int
    width: int
    stride: int

    def between(self, first: int, last: int) -> list[ShardRows]:
        """The rows within shard elements [first, last): the end of a row, whole rows, the beginning of a row."""
        first, last = max(0, first - self.start), min(self.rows * self.width, last - self.start)
        found = []
        while first < last:
            row, column = divmod(first, self.width)
            rows = (last - first) // self.width if column == 0 else 0
            width = self.width if rows else min(self.width - column, last - first)
            offset = self.offset + row * self.stride + column
            found.append(ShardRows(self.start + first, offset, max(rows, 1), width, self.stride))
            first += max(rows, 1) * width
        return found


@dataclass(frozen=True)
class Shard:
    """The part of one parameter that tensor parallelism leaves a rank, in the order in which it lies there."""

    shape: torch.Size  # of the whole parameter
    rows: tuple[ShardRows, ...]

    def of(self, value: Tensor) -> Tensor:
        """(n,): the shard of a whole value."""
        flat = value.flatten()
        return torch.cat([flat[r.offset :].as_strided((r.rows, r.width), (r.stride, 1)).flatten() for r in self.rows])


class BufferRange(NamedTuple):
    """A piece of one flattened parameter in a flat buffer: `numel` elements from `start` on."""

    name: str
    offset: int  # of the first element within the flattened parameter
    buffer: Tensor  # fp32: what the optimizer updates
    start: int
    numel: int
    rows: int = 1  # equal parts of the piece
    stride: int = 1  # elements between their beginnings within the flattened parameter, where there are several


@dataclass(frozen=True)
class Fragment:
    """A piece of one flattened parameter: `weight` and each of `moments` is a live fp32 view.

    (n,) where the piece is contiguous; (rows, width) where rows of it begin `stride` elements after each other.
    """

    name: str
    offset: int  # of the first element within the flattened parameter
    weight: Tensor
    moments: dict[str, Tensor]
    updates: Tensor  # scalar: optimizer updates so far; shared by the fragments of one buffer
    stride: int = 1

    @property
    def numel(self) -> int:
        """Elements in the piece."""
        return self.weight.numel()

    @property
    def span(self) -> int:
        """Elements of the flattened parameter from the first of the piece to its last."""
        return sum((size - 1) * step for size, step in zip(self.weight.shape, self._steps, strict=True)) + 1

    @property
    def _steps(self) -> tuple[int, ...]:
        return (self.stride, 1) if self.weight.ndim == 2 else (1,)

    @property
    def key(self) -> str:
        """Its name in files."""
        return f"{self.name}@{self.offset}" + (f"+{self.stride}" if self.weight.ndim == 2 else "")

    def of(self, values: Tensor) -> Tensor:
        """The piece, in its own shape, of `span` contiguous elements from its offset on."""
        return values.as_strided(self.weight.shape, self._steps)


def in_whole(piece: BufferRange, shard: Shard) -> list[BufferRange]:
    """A piece of a shard as pieces of the whole parameter."""
    first, last = piece.offset, piece.offset + piece.numel
    found = []
    for part in (part for rows in shard.rows for part in rows.between(first, last)):
        start, numel = piece.start + part.start - first, part.rows * part.width
        found.append(BufferRange(piece.name, part.offset, piece.buffer, start, numel, part.rows, part.stride))
    return found


def split_between_ranks(pieces: list[Fragment], rank: int, count: int) -> list[Fragment]:
    """Cuts pieces that all `count` ranks have whole into equal shares, and returns those of `rank`."""
    cut = []
    for piece in pieces:
        size = piece.weight.shape[0]
        start, stop = size * rank // count, size * (rank + 1) // count
        if start < stop:
            moments = {key: values[start:stop] for key, values in piece.moments.items()}
            offset = piece.offset + start * piece.stride
            cut.append(replace(piece, offset=offset, weight=piece.weight[start:stop], moments=moments))
    return cut


def fragment_of(place: BufferRange, optimizer: torch.optim.Optimizer) -> Fragment:
    """Live views of a piece's weight and moments; the optimizer's state is made now if no step has made it yet.

    The optimizer keeps, for each tensor it updates, moments of the tensor's size and the number of updates as `step`.
    """
    state: dict[str, Tensor] = optimizer.state[place.buffer]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=place.buffer.device)
        state.update({key: torch.zeros_like(place.buffer, requires_grad=False) for key in MOMENTS})

    def cut(values: Tensor) -> Tensor:
        piece = values.detach().view(-1).narrow(0, place.start, place.numel)
        return piece.view(place.rows, -1) if place.rows > 1 else piece

    # Sorted, so that all ranks and all files have the same order; `step` is a scalar beside them.
    keys = sorted(key for key, values in state.items() if key != "step" and torch.is_tensor(values))
    moments = {key: cut(state[key]) for key in keys if state[key].numel() == place.buffer.numel()}
    stride = place.stride if place.rows > 1 else 1
    return Fragment(place.name, place.offset, cut(place.buffer), moments, state["step"], stride)

"""Which numbers of which parameter this rank keeps in full precision, at every ZeRO stage.

DeepSpeed lays fp32 weights and optimizer moments out in flat buffers that depend on the stage and the number of ranks.
Here each becomes a list of `Fragment`s: live views into those buffers with the parameter's name and the offset within
it. A checkpoint made of them loads at any stage and any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# AdamW's, for tensors that the optimizer has not made a state for yet.
MOMENTS = ("exp_avg", "exp_avg_sq")


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of a parameter, also where ZeRO-3 or tensor parallelism has left a rank only a piece of it."""
    shard: Shard | None = getattr(parameter, "shard", None)
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape) if shard is None else shard.shape
    return shape


class Block(NamedTuple):
    """Part of a shard: `rows` runs of `width` numbers, one after the other in the shard from `start` on.

    In the whole flattened parameter the first begins at `offset`, and each next one `stride` after the one before.
    """

    start: int
    offset: int
    rows: int
    width: int
    stride: int

    def between(self, first: int, last: int) -> list[Block]:
        """What of it lies in numbers [first, last) of the shard: part of a row, whole rows, part of a row."""
        first, last = max(0, first - self.start), min(self.rows * self.width, last - self.start)
        found = []
        while first < last:
            row, column = divmod(first, self.width)
            rows = (last - first) // self.width if column == 0 else 0
            width = self.width if rows else min(self.width - column, last - first)
            offset = self.offset + row * self.stride + column
            found.append(Block(self.start + first, offset, max(rows, 1), width, self.stride))
            first += max(rows, 1) * width
        return found


@dataclass(frozen=True)
class Shard:
    """What tensor parallelism leaves a rank of one parameter, in the order in which it lies there."""

    shape: torch.Size  # of the whole parameter
    blocks: tuple[Block, ...]

    def of(self, value: Tensor) -> Tensor:
        """(n,): the shard of a whole value."""
        flat = value.flatten()
        return torch.cat([flat[b.offset :].as_strided((b.rows, b.width), (b.stride, 1)).flatten() for b in self.blocks])


class Place(NamedTuple):
    """Where this rank keeps a piece of one flattened parameter: `numel` numbers from `start` of the flat `buffer`."""

    name: str
    offset: int  # of the first number within the flattened parameter
    buffer: Tensor  # fp32: what the optimizer updates
    start: int
    numel: int
    rows: int = 1  # equal parts of the piece
    stride: int = 1  # numbers between their beginnings within the flattened parameter, where there are several


@dataclass(frozen=True)
class Fragment:
    """A piece of one flattened parameter: `weight` and each of `moments` is a live fp32 view.

    (n,) where the piece is contiguous; (rows, width) where rows of it begin `stride` numbers after each other.
    """

    name: str
    offset: int  # of the first number within the flattened parameter
    weight: Tensor
    moments: dict[str, Tensor]
    updates: Tensor  # scalar: optimizer updates so far; shared by the fragments of one buffer
    stride: int = 1

    @property
    def numel(self) -> int:
        """Numbers in the piece."""
        return self.weight.numel()

    @property
    def span(self) -> int:
        """Numbers of the flattened parameter from the first of the piece to its last."""
        return sum((size - 1) * step for size, step in zip(self.weight.shape, self._steps, strict=True)) + 1

    @property
    def _steps(self) -> tuple[int, ...]:
        return (self.stride, 1) if self.weight.ndim == 2 else (1,)

    @property
    def key(self) -> str:
        """Its name in files."""
        return f"{self.name}@{self.offset}" + (f"+{self.stride}" if self.weight.ndim == 2 else "")

    def of(self, values: Tensor) -> Tensor:
        """The piece, in its own shape, of `span` contiguous numbers from its offset on."""
        return values.as_strided(self.weight.shape, self._steps)


def places(engine: Any, stage: int, parameters: Iterable[tuple[str, nn.Parameter]]) -> list[Place]:
    """This rank's pieces in a DeepSpeed engine, in the order of `parameters`.

    At stage 0 every rank has all of every parameter; otherwise no two ranks have the same number.
    """
    locate = {0: _whole, 1: _flat_groups, 2: _flat_groups, 3: _subgroups}[stage]
    found = []
    for name, parameter in parameters:
        if (place := locate(engine, name, parameter)) is not None:
            shard: Shard | None = getattr(parameter, "shard", None)
            found += [place] if shard is None else in_whole(place, shard)
    return found


def in_whole(place: Place, shard: Shard) -> list[Place]:
    """A place in a shard as places in the whole parameter."""
    first, last = place.offset, place.offset + place.numel
    return [
        Place(
            place.name,
            block.offset,
            place.buffer,
            place.start + block.start - first,
            block.rows * block.width,
            block.rows,
            block.stride,
        )
        for whole in shard.blocks
        for block in whole.between(first, last)
    ]


def units(engine: Any, stage: int) -> list[list[Tensor]]:
    """All buffers that this rank's optimizer updates: those of one list in one call of `step`, at once on all ranks."""
    if stage == 3:
        return [[buffer] for buffer in engine.optimizer.fp32_partitioned_groups_flat]
    return [list(group["params"]) for group in engine.optimizer.param_groups]


def fragments(engine: Any, stage: int, parameters: Iterable[tuple[str, nn.Parameter]]) -> list[Fragment]:
    """This rank's fragments of a DeepSpeed engine: its `places` with weights and moments.

    The optimizer keeps, for each tensor it updates, moments of the tensor's size and the number of updates as `step`.
    """
    optimizer = engine.optimizer.optimizer if stage else engine.optimizer
    return [_fragment(optimizer, place) for place in places(engine, stage, parameters)]


def shares(pieces: list[Fragment], rank: int, count: int) -> list[Fragment]:
    """Of pieces that all `count` ranks have whole: this rank's part of each, so that every rank writes as much."""
    cut = []
    for piece in pieces:
        size = piece.weight.shape[0]
        start, stop = size * rank // count, size * (rank + 1) // count
        if start < stop:
            moments = {key: values[start:stop] for key, values in piece.moments.items()}
            offset = piece.offset + start * piece.stride
            cut.append(replace(piece, offset=offset, weight=piece.weight[start:stop], moments=moments))
    return cut


def _whole(engine: Any, name: str, parameter: nn.Parameter) -> Place:
    return Place(name, 0, parameter, 0, parameter.numel())


def _flat_groups(engine: Any, name: str, parameter: Any) -> Place | None:
    mapping = parameter._hp_mapping
    if mapping is None:  # all of it lies on other ranks
        return None
    (flat,) = engine.optimizer.optimizer.param_groups[mapping.param_group_index]["params"]
    address = mapping.hp_fragment_address
    return Place(name, mapping.lp_fragment_address.start, flat, address.start, address.numel)


def _subgroups(engine: Any, name: str, parameter: Any) -> Place | None:
    zero3 = engine.optimizer
    group, start, numel = zero3.grad_position[zero3.get_param_id(parameter)]
    offset = zero3._get_param_partition_rank(parameter) * parameter.ds_tensor.ds_numel
    # The last ranks' pieces are padded, or nothing but padding.
    numel = min(numel, parameter.ds_numel - offset)
    if numel <= 0:
        return None
    return Place(name, offset, zero3.fp32_partitioned_groups_flat[group], start, numel)


def _fragment(optimizer: torch.optim.Optimizer, place: Place) -> Fragment:
    """With the optimizer's state, made now if the first step has not made it yet."""
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

"""Which numbers of which parameter this rank keeps in full precision, at every ZeRO stage.

DeepSpeed lays fp32 weights and optimizer moments out in flat buffers that depend on the stage and the number of ranks.
Here each becomes a list of `Fragment`s: live views into those buffers with the parameter's name and the offset within
it. A checkpoint made of them loads at any stage and any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# AdamW's. Another optimizer names its own in its parameter groups: `{"params": …, "moments": ("momentum_buffer",)}`.
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """A contiguous piece of one flattened parameter: `weight` and each of `moments` is a live (n,) fp32 view."""

    name: str
    offset: int  # of the first number within the flattened parameter
    weight: Tensor
    moments: dict[str, Tensor]
    updates: Tensor  # scalar: optimizer updates so far; shared by the fragments of one buffer

    @property
    def numel(self) -> int:
        """Numbers in the piece."""
        return self.weight.numel()


def fragments(engine: Any, stage: int, parameters: Iterable[tuple[str, nn.Parameter]]) -> list[Fragment]:
    """This rank's fragments of a DeepSpeed engine, in the order of `parameters`.

    The optimizer keeps, for each tensor it updates, moments of the tensor's size and the number of updates as `step`.

    At stage 0 every rank has all of every parameter; otherwise no two ranks have the same number.
    """
    locate = {0: _whole, 1: _flat_groups, 2: _flat_groups, 3: _subgroups}[stage]
    return [piece for name, parameter in parameters if (piece := locate(engine, name, parameter)) is not None]


def shares(pieces: list[Fragment], rank: int, count: int) -> list[Fragment]:
    """Of pieces that all `count` ranks have whole: this rank's part of each, so that every rank writes as much."""
    cut = []
    for piece in pieces:
        start, stop = piece.numel * rank // count, piece.numel * (rank + 1) // count
        if start < stop:
            moments = {key: values[start:stop] for key, values in piece.moments.items()}
            cut.append(Fragment(piece.name, piece.offset + start, piece.weight[start:stop], moments, piece.updates))
    return cut


def _whole(engine: Any, name: str, parameter: nn.Parameter) -> Fragment:
    state, keys = _state(engine.optimizer, parameter)
    moments = {key: state[key].view(-1) for key in keys}
    return Fragment(name, 0, parameter.detach().view(-1), moments, state["step"])


def _flat_groups(engine: Any, name: str, parameter: Any) -> Fragment | None:
    mapping = parameter._hp_mapping
    if mapping is None:  # all of it lies on other ranks
        return None
    base = engine.optimizer.optimizer
    (flat,) = base.param_groups[mapping.param_group_index]["params"]
    address = mapping.hp_fragment_address
    return _cut(base, flat, name, mapping.lp_fragment_address.start, address.start, address.numel)


def _subgroups(engine: Any, name: str, parameter: Any) -> Fragment | None:
    zero3 = engine.optimizer
    group, start, numel = zero3.grad_position[zero3.get_param_id(parameter)]
    offset = zero3._get_param_partition_rank(parameter) * parameter.ds_tensor.ds_numel
    # The last ranks' pieces are padded, or nothing but padding.
    numel = min(numel, parameter.ds_numel - offset)
    if numel <= 0:
        return None
    return _cut(zero3.optimizer, zero3.fp32_partitioned_groups_flat[group], name, offset, start, numel)


def _cut(optimizer: torch.optim.Optimizer, flat: Tensor, name: str, offset: int, start: int, numel: int) -> Fragment:
    state, keys = _state(optimizer, flat)
    moments = {key: state[key].narrow(0, start, numel) for key in keys}
    return Fragment(name, offset, flat.detach().narrow(0, start, numel), moments, state["step"])


def _state(optimizer: torch.optim.Optimizer, tensor: Tensor) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The optimizer's state of a tensor, made now if the first step has not made it yet, and the moments in it."""
    state: dict[str, Tensor] = optimizer.state[tensor]
    if not state:
        groups = (group for group in optimizer.param_groups if any(tensor is other for other in group["params"]))
        state["step"] = torch.zeros((), dtype=torch.float32, device=tensor.device)
        names = next(groups, {}).get("moments", MOMENTS)
        state.update({key: torch.zeros_like(tensor, requires_grad=False) for key in names})
    # Sorted, so that all ranks and all files have the same order; `step` is a scalar beside them.
    moments = (key for key, value in state.items() if key != "step" and torch.is_tensor(value))
    return state, tuple(sorted(key for key in moments if state[key].numel() == tensor.numel()))

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
    """This rank's fragments of a DeepSpeed engine whose optimizer is torch's AdamW, in the order of `parameters`.

    At stage 0 every rank has all of every parameter; otherwise no two ranks have the same number.
    """
    locate = {0: _whole, 1: _flat_groups, 2: _flat_groups, 3: _subgroups}[stage]
    return [piece for name, parameter in parameters if (piece := locate(engine, name, parameter)) is not None]


def _whole(engine: Any, name: str, parameter: nn.Parameter) -> Fragment:
    state = _state(engine.optimizer, parameter)
    moments = {key: state[key].view(-1) for key in MOMENTS}
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
    state = _state(optimizer, flat)
    moments = {key: state[key].narrow(0, start, numel) for key in MOMENTS}
    return Fragment(name, offset, flat.detach().narrow(0, start, numel), moments, state["step"])


def _state(optimizer: torch.optim.Optimizer, tensor: Tensor) -> dict[str, Tensor]:
    """AdamW's state of a tensor, made now if the first step has not made it yet."""
    state: dict[str, Tensor] = optimizer.state[tensor]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=tensor.device)
        state.update({key: torch.zeros_like(tensor, requires_grad=False) for key in MOMENTS})
    return state

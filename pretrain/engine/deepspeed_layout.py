"""Finds where DeepSpeed keeps each parameter's fp32 weights and moments, at every ZeRO stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from pretrain.engine.deepspeed_private import Layout
from pretrain.parallel.fragments import BufferRange, Fragment, Shard, fragment_of, in_whole


def update_groups(engine: Any, layout: Layout) -> list[list[Tensor]]:
    """All buffers that this rank's optimizer updates: one list for each call of its `step`, at once on all ranks."""
    if layout is Layout.SUBGROUPS:
        return [[buffer] for buffer in engine.optimizer.fp32_partitioned_groups_flat]
    return [list(group["params"]) for group in engine.optimizer.param_groups]


def buffer_ranges(engine: Any, layout: Layout, parameters: Iterable[tuple[str, nn.Parameter]]) -> list[BufferRange]:
    """The pieces of all parameters that this rank updates, in the order of `parameters`.

    At stage 0 every rank has all of every parameter; otherwise no two ranks have the same element.
    """
    found: list[BufferRange] = []
    for name, parameter in parameters:
        if (piece := _LOCATE[layout](engine, name, parameter)) is not None:
            shard: Shard | None = getattr(parameter, "shard", None)
            found += [piece] if shard is None else in_whole(piece, shard)
    return found


def fragments(engine: Any, layout: Layout, parameters: Iterable[tuple[str, nn.Parameter]]) -> list[Fragment]:
    """`buffer_ranges` with live views of their weights and moments."""
    optimizer = engine.optimizer if layout is Layout.WHOLE else engine.optimizer.optimizer
    return [fragment_of(piece, optimizer) for piece in buffer_ranges(engine, layout, parameters)]


def _whole(engine: Any, name: str, parameter: nn.Parameter) -> BufferRange:
    return BufferRange(name, 0, parameter, 0, parameter.numel())


def _in_flat_group(engine: Any, name: str, parameter: Any) -> BufferRange | None:
    mapping = parameter._hp_mapping
    if mapping is None:  # all of it lies on other ranks
        return None
    (flat,) = engine.optimizer.optimizer.param_groups[mapping.param_group_index]["params"]
    address = mapping.hp_fragment_address
    return BufferRange(name, mapping.lp_fragment_address.start, flat, address.start, address.numel)


def _in_subgroup(engine: Any, name: str, parameter: Any) -> BufferRange | None:
    zero3 = engine.optimizer
    group, start, numel = zero3.grad_position[zero3.get_param_id(parameter)]
    offset = zero3._get_param_partition_rank(parameter) * parameter.ds_tensor.ds_numel
    # The last ranks' pieces are padded, or nothing but padding.
    numel = min(numel, parameter.ds_numel - offset)
    if numel <= 0:
        return None
    return BufferRange(name, offset, zero3.fp32_partitioned_groups_flat[group], start, numel)


_LOCATE: dict[Layout, Callable[[Any, str, nn.Parameter], BufferRange | None]] = {
    Layout.WHOLE: _whole,
    Layout.FLAT: _in_flat_group,
    Layout.FLAT_BF16: _in_flat_group,
    Layout.SUBGROUPS: _in_subgroup,
}

"""Detects silent corruption: compares, bit for bit, the tensor elements that several ranks hold.

Stages 0 to 2 keep the model's weights on every rank, stage 0 the optimizer's moments as well. At stage 3 each number
lies on one rank, and only what ZeRO keeps whole everywhere (small parameters) can be compared.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from pretrain.engine.engine import Engine
from pretrain.parallel.collectives import gather
from pretrain.parallel.fragments import full_shape
from pretrain.phases import Phase


class SilentCorruption(ValueError):
    """Ranks that should hold the same values do not."""


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def digests(tensors: Iterable[Tensor]) -> Tensor:
    """(n,) int64: the sum of each tensor's bits as integers, modulo 2**64. Any flipped bit changes it."""
    return torch.stack([_digest(tensor.detach().contiguous().view(-1)) for tensor in tensors])


def _digest(values: Tensor) -> Tensor:
    # Eight bytes at a time: this runs at the speed of the memory; widening each number does not.
    per = 8 // values.element_size()
    if values.storage_offset() % per:
        values = values.clone()
    whole = values.numel() // per * per
    rest = values[whole:].view(_INTEGERS[values.element_size()])
    return values[:whole].view(torch.int64).sum() + rest.sum(dtype=torch.int64)


def deviating(columns: list[list[int]]) -> dict[int, int]:
    """Rank -> index of its first digest that differs from the majority's; all ranks when there is no majority.

    Args:
        columns: one list of digests for each rank.
    """
    whole = [tuple(column) for column in columns]
    winner, votes = Counter(whole).most_common(1)[0]
    if votes == len(whole):
        return {}
    alone = votes * 2 <= len(whole)
    found = {}
    for rank, column in enumerate(whole):
        if alone or column != winner:
            reference = winner if column != winner else next(other for other in whole if other != winner)
            found[rank] = next(
                i for i, (mine, other) in enumerate(zip(column, reference, strict=True)) if mine != other
            )
    return found


def check_replicas(names: list[str], columns: list[list[int]], hosts: list[str], step: int) -> None:
    """Raises `SilentCorruption` naming the ranks whose digests differ after `step` updates."""
    if not (found := deviating(columns)):
        return
    ranks = ", ".join(f"rank {rank} ({hosts[rank]}; first in {names[index]})" for rank, index in found.items())
    which = "no majority says which of them is right" if len(found) == len(columns) else "the other ranks agree"
    raise SilentCorruption(
        f"after step {step} ranks do not hold the same weights any more: {ranks}; {which}. A device or its memory "
        "computed wrongly: nothing was saved since the last comparison. Take the machine out and run the same command "
        "again, which goes on from the newest checkpoint"
    )


def compare_replicas(engine: Engine, step: int) -> None:
    """Compares, bit for bit, what several ranks hold after `step` updates; every rank must call it.

    Raises:
        SilentCorruption: on every rank, naming those that differ.
    """
    if engine.ranks.count == 1:
        return
    parameters = engine.state.parameters()
    whole: dict[str, Tensor] = {name: p for name, p in parameters if p.numel() == full_shape(p).numel()}
    if engine.stage == 0:
        for piece in (piece for piece in engine.state.fragments() if piece.name in whole):
            whole.update({f"{key} of {piece.name}": value for key, value in piece.moments.items()})
    if whole:
        engine.report_phase(Phase.COMPARING_RANKS)
        found = gather((socket.gethostname(), digests(whole.values()).tolist()))
        check_replicas(list(whole), [column for _, column in found], [host for host, _ in found], step)

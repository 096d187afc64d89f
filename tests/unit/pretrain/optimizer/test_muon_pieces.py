"""The worked examples of Muon: which pieces ranks hold, and what they send each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from configs.schema.train import Optimizer
from pretrain.optimizer.muon import Muon
from pretrain.optimizer.muon_exchange import Matrix, Piece, plan_rounds
from pretrain.parallel.fragments import BufferRange

GATE, UP = Matrix("up", 0, 2, 3), Matrix("up", 6, 2, 3)
A, B, C = Piece(0, 0, 6, 0, 8), Piece(1, 0, 2, 0, 14), Piece(1, 2, 4, 0, 0)


@pytest.mark.parametrize(
    ("rank", "own", "send", "receive", "give_back", "get_back"),
    [
        (0, {0: [A]}, [[], [B]], [[], []], [[], []], [[], [B]]),
        (1, {1: [C]}, [[], []], [[B], []], [[B], []], [[], []]),
    ],
)
def test_the_example_of_a_round(rank: int, own: Any, send: Any, receive: Any, give_back: Any, get_back: Any) -> None:
    (found,) = plan_rounds([GATE, UP], [[A, B], [C]], rank, 1 << 20)
    assert found.own == own and found.travels and found.gathers
    assert (found.send, found.receive) == (send, receive)
    assert (found.give_back, found.get_back) == (give_back, get_back)


def test_the_example_of_attach(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, told = torch.zeros(16), []

    def gather(held: Any) -> list[Any]:
        told.append(held)
        return [held, [[C]]]

    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    optimizer = Muon.__new__(Muon)  # its constructor loads the compiler, for seconds
    optimizer._matrices, optimizer._settings, optimizer._groups = [GATE, UP], Optimizer().muon, []
    optimizer.state = {}  # type: ignore[assignment]
    optimizer.attach([[buffer]], [BufferRange("up", 0, buffer, 8, 8)], gather, torch.device("cpu"))
    assert told == [[[A, B]]]
    (group,) = optimizer._groups
    assert group.matrices == [GATE, UP] and group.rounds[0].own == {0: [A]}

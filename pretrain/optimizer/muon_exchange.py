"""Plans which rank works on which matrix, and sends the pieces of matrices and of results between ranks.

ZeRO cuts flat buffers with no regard to matrices. A matrix that lies whole on one rank is worked on there and does not
travel; the others go to one of the ranks that hold a piece, so that all ranks have about as much to do. Where every
rank holds everything (stage 0) the work is shared out as well, and only results travel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Matrix(NamedTuple):
    """`rows` x `columns` elements of a flattened parameter, from `offset` on."""

    parameter: str
    offset: int
    rows: int
    columns: int

    @property
    def numel(self) -> int:
        """Elements in it."""
        return self.rows * self.columns

    @property
    def cost(self) -> float:
        """Proportional to the work of one Newton-Schulz iteration."""
        small, large = sorted((self.rows, self.columns))
        return float(small * small * (2 * large + small))


class Piece(NamedTuple):
    """Elements [start, start + numel) of a flattened matrix, at `at` in the flattened buffer number `buffer`."""

    matrix: int
    start: int
    numel: int
    buffer: int
    at: int


@dataclass(frozen=True)
class Round:
    """The work of one rank at a time. Lists by rank; nothing goes from a rank to itself."""

    own: dict[int, list[Piece]]  # matrices that this rank works on -> its own pieces of them
    send: list[list[Piece]]  # this rank's pieces of others' matrices
    receive: list[list[Piece]]  # their pieces of its matrices
    give_back: list[list[Piece]]  # results of its matrices for their pieces
    get_back: list[list[Piece]]  # results for its pieces of their matrices
    travels: bool  # whether anything goes anywhere, between any ranks
    gathers: bool  # whether pieces do, and not only results


def plan_rounds(matrices: Sequence[Matrix], held: list[list[Piece]], rank: int, most: int) -> list[Round]:
    """The rounds of `rank`; no rank works on more than `most` elements in one, unless they are of a single matrix.

    `held`: by rank, all its pieces. All ranks get the same number of rounds.
    """
    pieces: list[dict[int, list[Piece]]] = [{} for _ in matrices]
    for holder, list_of in enumerate(held):
        for piece in list_of:
            pieces[piece.matrix].setdefault(holder, []).append(piece)
    owners = _owners(matrices, pieces)
    # Matrices of one shape come together: they are worked on as a batch.
    order = sorted(range(len(matrices)), key=lambda index: (*sorted(matrices[index][2:]), index))
    rounds: list[list[int]] = []
    loads: dict[int, int] = {}
    for index in order:
        owner, numel = owners[index], matrices[index].numel
        if not rounds or 0 < loads.get(owner, 0) > most - numel:
            rounds.append([])
            loads = {}
        loads[owner] = loads.get(owner, 0) + numel
        rounds[-1].append(index)
    return [_round(matrices, pieces, owners, rank, len(held), members) for members in rounds]


def _whole(matrix: Matrix, pieces: list[Piece]) -> bool:
    return sum(piece.numel for piece in pieces) == matrix.numel


def _owners(matrices: Sequence[Matrix], pieces: list[dict[int, list[Piece]]]) -> list[int]:
    """The rank for each matrix: greedy, the costliest first, to who has the least to do among those that may."""
    owners = [0] * len(matrices)
    loads: dict[int, float] = {}

    def held(index: int, rank: int) -> int:
        return sum(piece.numel for piece in pieces[index][rank])

    for index in sorted(range(len(matrices)), key=lambda i: (len(pieces[i]), -matrices[i].cost, i)):
        owner = min(pieces[index], key=lambda rank: (loads.get(rank, 0.0), -held(index, rank), rank))
        loads[owner] = loads.get(owner, 0.0) + matrices[index].cost
        owners[index] = owner
    return owners


def _round(
    matrices: Sequence[Matrix],
    pieces: list[dict[int, list[Piece]]],
    owners: list[int],
    rank: int,
    ranks: int,
    members: list[int],
) -> Round:
    """The round of `rank` with the matrices `members`; `pieces` and `owners` by matrix.

    For example matrix 0 lies whole on rank 0 as piece a; matrix 1 lies half on rank 0 (piece b) and half on rank 1
    (piece c), and rank 1 works on it:

                     rank 0         rank 1
        own          {0: [a]}       {1: [c]}
        send         [[], [b]]      [[], []]      rank 0 sends its half of matrix 1 to rank 1
        receive      [[], []]       [[b], []]
        give_back    [[], []]       [[b], []]     rank 1 sends the result for that half back
        get_back     [[], [b]]      [[], []]
    """
    own: dict[int, list[Piece]] = {}
    by_rank: list[list[list[Piece]]] = [[[] for _ in range(ranks)] for _ in range(4)]  # (4, ranks) lists of pieces
    send, receive, give_back, get_back = by_rank
    travels = gathers = False
    for index in members:
        owner, holders = owners[index], pieces[index]
        whole = _whole(matrices[index], holders[owner])
        travels, gathers = travels or len(holders) > 1, gathers or not whole
        # A matrix that its owner has whole is not sent; the other holders want the result all the same.
        if owner == rank:
            own[index] = holders[rank]
            for other in holders:
                if other != rank:
                    give_back[other] += holders[other]
                    receive[other] += [] if whole else holders[other]
        elif rank in holders:
            get_back[owner] += holders[rank]
            send[owner] += [] if whole else holders[rank]
    return Round(own, send, receive, give_back, get_back, travels, gathers)


def exchange_pieces(
    outgoing: list[list[Piece]],
    incoming: list[list[Piece]],
    read: Callable[[Piece], Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> list[tuple[Piece, Tensor]]:
    """Sends `read(piece)` of every outgoing piece; returns the incoming ones, each with its flat values."""
    sent, received = ([sum(piece.numel for piece in pieces) for pieces in way] for way in (outgoing, incoming))
    source = torch.empty(sum(sent), dtype=dtype, device=device)
    at = 0
    for pieces in outgoing:
        for piece in pieces:
            source[at : at + piece.numel] = read(piece)
            at += piece.numel
    target = torch.empty(sum(received), dtype=dtype, device=device)
    dist.all_to_all_single(target, source, received, sent)
    arrived = []
    at = 0
    for pieces in incoming:
        for piece in pieces:
            arrived.append((piece, target[at : at + piece.numel]))
            at += piece.numel
    return arrived

"""Divides the requests of an evaluation between ranks, and gives all answers to every rank."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from eval.reading.reader import Reader
from eval.reading.windows import Report, Score, Window
from pretrain.generation.player import Answer, Request
from pretrain.parallel.lockstep import Lockstep
from pretrain.phases import Phase

Asked = TypeVar("Asked")
Given = TypeVar("Given")
# What a window costs beside its tokens: its place in a batch, its row of the output projection.
_WINDOW_TOKENS = 4


class RankedReader:
    """Reads on all ranks: each answers its share. All ranks must ask for the same, in the same order.

    Args:
        reader: of this rank.
        ranks: the ranks that ask together.
    """

    def __init__(self, reader: Reader, ranks: Lockstep) -> None:
        self._reader, self._ranks = reader, ranks
        self.context_length, self.vocab_size, self.precision = (
            reader.context_length,
            reader.vocab_size,
            reader.precision,
        )

    def score(self, windows: Sequence[Window], report: Report | None = None) -> list[Score]:
        """See `Reader.score`. Windows that begin alike go to one rank, which reads their beginning once."""
        shares = divide_windows(windows, self._ranks.count)
        digest = _digest(window.tokens.tobytes() for window in windows)
        return self._shared(windows, shares, self._reader.score, f"log-likelihoods {digest}", report)

    def generate(self, requests: Sequence[Request], report: Report | None = None) -> list[Answer]:
        """See `Reader.generate`. Each rank gets as many long and short prompts as the others."""
        shares = deal([len(request.prompt) for request in requests], self._ranks.count)
        digest = _digest(np.asarray(request.prompt, dtype=np.int64).tobytes() for request in requests)

        def generate(own: Sequence[Request], report: Report) -> list[list[Answer]]:
            answers = iter(self._reader.generate(own, report))
            return [[next(answers) for _ in range(request.samples)] for request in own]

        found = self._shared(requests, shares, generate, f"answers {digest}", report)
        return [answer for answers in found for answer in answers]

    def rewards(self, rows: Sequence[Sequence[int]], report: Report | None = None) -> list[float]:
        """See `Reader.rewards`."""
        shares = deal([len(row) for row in rows], self._ranks.count)
        digest = _digest(np.asarray(row, dtype=np.int64).tobytes() for row in rows)
        return self._shared(rows, shares, self._reader.rewards, f"rewards {digest}", report)

    def _shared(
        self,
        requests: Sequence[Asked],
        shares: list[list[int]],
        answer: Callable[[Sequence[Asked], Report], list[Given]],
        place: str,
        report: Report | None,
    ) -> list[Given]:
        """Answers this rank's share, and collects those of all ranks in the order of the requests."""
        # Before a forward pass: where weights are divided, it would wait for a rank that has failed meanwhile.
        self._ranks.exchange(None, place)
        own = shares[self._ranks.rank]
        self._ranks.report_phase(Phase.SCORING)
        # Without a share too: at ZeRO-3 a rank takes part in the forward passes of the others.
        answers = answer([requests[index] for index in own], self._report_of(len(requests), report))
        found: list[Any] = [None] * len(requests)
        for share, given in zip(shares, self._ranks.exchange(answers, place), strict=True):
            for index, one in zip(share, given, strict=True):
                found[index] = one
        if report is not None and requests:
            report(len(requests), total=len(requests))
        return found

    def _report_of(self, count: int, report: Report | None) -> Report:
        """Scales this rank's progress to all requests, and gives a sign of life."""

        def update(completed: float, note: str = "", total: float | None = None) -> None:
            self._ranks.report_phase(Phase.SCORING)
            if report is not None:
                report(int(count * completed / total) if total else 0, note, count)

        return update


def divide_windows(windows: Sequence[Window], count: int) -> list[list[int]]:
    """Gives each rank windows of equal cost; those with a common beginning stay together.

    Windows in the order of their tokens are cut into `count` parts. What a window shares with the one before it costs
    nothing.

    Returns:
        The numbers of each rank's windows, in increasing order.
    """
    if count == 1:
        return [list(range(len(windows)))]
    order = sorted(range(len(windows)), key=lambda index: windows[index].tokens.tobytes())
    costs = np.zeros(len(order))
    for place, index in enumerate(order):
        tokens = windows[index].tokens
        common = common_beginning(windows[order[place - 1]].tokens, tokens) if place else 0
        costs[place] = len(tokens) - common + _WINDOW_TOKENS
    ends = np.cumsum(costs)
    # The rank of a window is that in whose part the middle of its cost lies.
    ranks = np.minimum(((ends - costs / 2) * count / ends[-1]).astype(int), count - 1) if len(order) else []
    shares: list[list[int]] = [[] for _ in range(count)]
    for index, rank in zip(order, ranks, strict=True):
        shares[rank].append(index)
    return [sorted(share) for share in shares]


def common_beginning(one: np.ndarray, other: np.ndarray) -> int:
    """Counts the tokens that two sequences begin with alike."""
    size = min(len(one), len(other))
    different = np.flatnonzero(one[:size] != other[:size])
    return int(different[0]) if len(different) else size


def deal(costs: Sequence[float], count: int) -> list[list[int]]:
    """Deals requests to ranks, the costliest first, forth and back: 0, 1, 1, 0, 0, 1 and so on.

    Returns:
        The numbers of each rank's requests, in increasing order.
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    for place, index in enumerate(sorted(range(len(costs)), key=lambda index: -costs[index])):
        turn, rank = divmod(place, count)
        shares[rank if turn % 2 == 0 else count - 1 - rank].append(index)
    return [sorted(share) for share in shares]


def _digest(pieces: Iterable[bytes]) -> str:
    """Digest of what is asked: ranks whose files differ are told so, before they mix up their answers."""
    digest = hashlib.blake2b(digest_size=8)
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little") + piece)
    return digest.hexdigest()

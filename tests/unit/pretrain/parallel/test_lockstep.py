"""Ranks (threads here) in step: values, errors, orders to stop, and a rank that is gone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from configs.common.exit_codes import TERMINATED
from pretrain.parallel.lockstep import ALONE, Lockstep, OtherRankBroke, OtherRankFailed, OutOfStep
from pretrain.parallel.ranks import Ranks
from tests.parts.training_run import as_ranks


def outcomes(count: int, work: Callable[[Lockstep], Any]) -> list[Any]:
    """What each rank's work gives or raises."""

    def of(ranks: Ranks, gather: Callable[[Any], list[Any]]) -> Any:
        try:
            return work(Lockstep(ranks.rank, ranks.count, gather))
        except BaseException as error:
            return error

    return as_ranks(count, of)


def test_every_rank_gets_what_all_bring_and_what_rank_0_makes() -> None:
    calls: list[int] = []

    def work(ranks: Lockstep) -> Any:
        with ranks.together("it"):
            return ranks.exchange(ranks.rank * 10), ranks.of_main(lambda: calls.append(ranks.rank) or "made")

    assert outcomes(3, work) == [([0, 10, 20], "made")] * 3 and calls == [0]
    assert work(ALONE) == ([0], "made")


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("meetings", [0, 2])
def test_an_error_of_one_rank_is_raised_on_all_and_the_next_work_goes_on(bad: int, meetings: int) -> None:
    """Whether the others are at an exchange or already at the end of the work, and whether somebody catches it."""

    def work(ranks: Lockstep) -> Any:
        ends: list[Any] = []
        for name in ("first", "second"):
            try:
                with ranks.together(name):
                    if ranks.rank == bad and name == "first":
                        raise ValueError("no such file")
                    for number in range(meetings):
                        with suppress(ValueError):  # as careless code would: it must not go on alone
                            ranks.exchange(number)
                    ends.append(ranks.exchange(name))
            except ValueError as error:
                ends.append(error)
        return ends

    for rank, (first, second) in enumerate(outcomes(2, work)):
        assert second == ["second", "second"]
        if rank == bad:
            assert type(first) is ValueError and str(first) == "no such file"
        else:
            assert isinstance(first, OtherRankFailed) and f"rank {bad} on " in str(first)
            assert str(first).endswith("no such file")


def test_a_bug_of_another_rank_brings_its_traceback() -> None:
    def work(ranks: Lockstep) -> None:
        with ranks.together("it"):
            if ranks.rank == 1:
                raise KeyError("oops")

    main, own = outcomes(2, work)
    assert isinstance(main, OtherRankBroke) and "rank 1" in str(main) and "in work" in main.__notes__[0]
    assert isinstance(own, KeyError)


def test_all_ranks_fail_alike_without_naming_each_other() -> None:
    def work(ranks: Lockstep) -> None:
        with ranks.together("it"):
            raise ValueError("no such task")

    assert [str(end) for end in outcomes(3, work)] == ["no such task"] * 3


def test_ranks_at_different_places_are_told_so() -> None:
    def work(ranks: Lockstep) -> None:
        with ranks.together("it"):
            ranks.exchange(1, f"items {min(ranks.rank, 1)}")

    for end in outcomes(3, work):
        assert isinstance(end, OutOfStep) and "rank 0 is at 'items 0', rank 1 at 'items 1'" in str(end)


@pytest.mark.parametrize(
    ("stop", "code"), [(SystemExit(TERMINATED), TERMINATED), (SystemExit(75), 75), (SystemExit(3), 3)]
)
def test_an_order_to_stop_one_rank_stops_all(stop: SystemExit, code: int) -> None:
    """Also the rank that fails at the same time."""

    def work(ranks: Lockstep) -> None:
        with ranks.together("outer"):
            try:
                with ranks.together("inner"):
                    if ranks.rank == 1:
                        raise stop
                    if ranks.rank == 2:
                        raise ValueError("something else")
                    ranks.exchange("answers")
            except Exception as error:
                raise AssertionError("nobody goes on") from error

    ends = outcomes(3, work)
    assert [type(end) for end in ends] == [SystemExit] * 3 and {end.code for end in ends} == {code}


def test_a_signal_within_an_exchange_acts_after_it() -> None:
    """Or the other ranks would wait in it."""
    done: list[str] = []

    def gather(value: Any) -> list[Any]:
        os.kill(os.getpid(), signal.SIGINT)
        done.append("met")
        return [value, value]

    with pytest.raises(KeyboardInterrupt):
        Lockstep(0, 2, gather).exchange(1)
    assert done == ["met"]


def test_nothing_is_exchanged_after_a_rank_is_gone() -> None:
    calls: list[str] = []

    def gather(value: Any) -> list[Any]:
        calls.append("gather")
        raise RuntimeError("Connection closed by peer")

    ranks = Lockstep(0, 2, gather, lost=lambda error: calls.append(str(error)))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="closed by peer"), ranks.together("it"):
            ranks.exchange(1)
    assert calls == ["gather", "Connection closed by peer"]


def test_rank_0_goes_first_then_the_first_of_each_machine() -> None:
    """Two machines with two ranks each."""
    order: list[int] = []

    def of(ranks: Ranks, gather: Callable[[Any], list[Any]]) -> None:
        lockstep = Lockstep(ranks.rank, 4, gather, local_rank=ranks.rank % 2)
        with lockstep.together("it"), lockstep.main_first("data"):
            order.append(ranks.rank)

    as_ranks(4, of)
    assert order[:2] == [0, 2] and sorted(order) == [0, 1, 2, 3]

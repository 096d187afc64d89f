"""Keeps ranks in step that all do the same work: what one knows, or fails at, all know.

Ranks meet in *exchanges*. Each rank brings a value, an error or an order to stop, and every rank gets what all brought.
An error of one rank is raised on all, at the exchange where the others are by then, so no rank waits for one that has
given up. `together` encloses work that may fail: when it ends, it has ended on all ranks alike.
"""

from __future__ import annotations

import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from configs.common.exit_codes import STOPPED_EARLY, TERMINATED, explain
from pretrain.phases import Phase, ReportPhase, report_nothing
from pretrain.signals import stop_requests

T = TypeVar("T")


class OtherRankFailed(ValueError):
    """Another rank failed; the message is that rank's, with its number and host."""


class OtherRankBroke(RuntimeError):
    """Another rank failed by a bug; its traceback is a note of this error."""


class OutOfStep(ValueError):
    """Ranks came to one exchange from different places of their work."""


@dataclass(frozen=True)
class _Brought:
    """What a rank brings to an exchange: a value of some place, or how its work ended."""

    place: str
    value: Any = None
    error: str | None = None
    trace: str = ""  # of a bug
    stop: int = 0  # a signal
    code: Any = None  # of another end of the process
    host: str = ""


class Lockstep:
    """The ranks of one piece of work.

    Args:
        rank: of this process.
        count: processes.
        local_rank: of this process among those on its machine.
        gather: brings a value, returns those of all ranks; see `pretrain.parallel.collectives.gather`.
        report_phase: is told when this rank waits for others, and when it works.
        lost: called with the text of an error of `gather`, such as the end of another rank; it may end the process.
    """

    def __init__(
        self,
        rank: int = 0,
        count: int = 1,
        gather: Callable[[Any], list[Any]] | None = None,
        local_rank: int | None = None,
        report_phase: ReportPhase = report_nothing,
        lost: Callable[[Exception], None] | None = None,
    ) -> None:
        assert count == 1 or gather is not None
        self.rank, self.count, self.report_phase = rank, count, report_phase
        self.local_rank = rank if local_rank is None else local_rank
        self.lost, self._gather = lost, gather
        self._failed: BaseException | None = None  # raised on all ranks, and not yet at the end of `together`
        self._broken: Exception | None = None  # of `gather`: no exchange can follow

    @property
    def is_main(self) -> bool:
        """Tells whether this is rank 0, which alone writes and prints."""
        return self.rank == 0

    def exchange(self, value: Any, place: str = "") -> list[Any]:
        """Brings a value, and returns those of all ranks in their order.

        Args:
            value: can be pickled.
            place: where this rank's work is. All ranks must be at the same one.

        Raises:
            OtherRankFailed: when another rank brought an error that its user can mend.
            OtherRankBroke: when another rank brought any other error.
            OutOfStep: when the ranks are at different places.
            SystemExit: when a rank was asked to stop.
            KeyboardInterrupt: when a rank was asked to stop by Ctrl-C.
        """
        if self._failed is not None:  # somebody caught what ended the work on all ranks
            raise self._failed
        if self.count == 1:
            return [value]
        brought = self._meet(_Brought(place, value))
        if (failed := self._end_of(brought)) is not None:
            self._failed = failed
            raise failed
        return [one.value for one in brought]

    def of_main(self, make: Callable[[], T], place: str = "") -> T:
        """Returns on every rank what `make` gives on rank 0, which alone calls it."""
        value: T = self.exchange(make() if self.is_main else None, place)[0]
        return value

    @contextmanager
    def main_first(self, place: str = "") -> Iterator[None]:
        """Lets rank 0 through the body, then the first rank of each machine, then the others.

        For what is fetched once and then found, by all ranks or by those of one machine.
        """
        turn = 0 if self.is_main else 1 if self.local_rank == 0 else 2
        for number in range(turn):
            self.exchange(None, f"{place}, turn {number}")
        yield
        for number in range(turn, 2):
            self.exchange(None, f"{place}, turn {number}")

    @contextmanager
    def together(self, place: str = "") -> Iterator[None]:
        """Encloses work that ends on all ranks alike: well, or by the same rank's error.

        A rank that has failed keeps its own error. The others get that of the lowest rank that failed: from `exchange`,
        or when the body has ended.
        """
        try:
            yield
            self.exchange(None, f"end of {place}")
        except BaseException as error:
            told, self._failed = self._failed, None
            if told is not None or self.count == 1:  # all ranks know
                raise
            failed = self._end_of(self._meet(_what_ended(place, error)))
            if isinstance(error, Exception) and not isinstance(failed, Exception):  # asked to stop meanwhile
                raise failed from error  # type: ignore[misc]
            raise

    def _meet(self, own: _Brought) -> list[_Brought]:
        assert self._gather is not None
        if self._broken is not None:
            raise self._broken
        self.report_phase(Phase.WAITING)
        try:
            # A signal that came within a collective would leave the others inside.
            with signals_later():
                return self._gather(own)
        except Exception as error:
            self._broken = self._failed = error
            if self.lost is not None:
                self.lost(error)
            raise
        finally:
            self.report_phase(Phase.WORKING)

    def _end_of(self, brought: list[_Brought]) -> BaseException | None:
        """Returns what ends the work on all ranks, if anything does; an order to stop counts first."""
        if stop := next((one.stop for one in brought if one.stop), 0):
            return _stopping(stop)
        for rank, one in enumerate(brought):
            if one.code is not None:
                return SystemExit(one.code)
            if one.error is not None:
                text = f"rank {rank} on {one.host}: {one.error}"
                if not one.trace:
                    return OtherRankFailed(text)
                broke = OtherRankBroke(text)
                broke.add_note(one.trace)
                return broke
        places = [one.place for one in brought]
        if len(set(places)) > 1:
            other = next(rank for rank, place in enumerate(places) if place != places[0])
            return OutOfStep(
                f"the ranks do not do the same work: rank 0 is at {places[0]!r}, rank {other} at {places[other]!r}; "
                "compare their files and versions with `replica doctor`"
            )
        return None


ALONE = Lockstep()
# Exit codes of commands that a signal ended, see `configs.common.exit_codes`.
_ENDED_BY: dict[object, int] = {TERMINATED: signal.SIGTERM, STOPPED_EARLY: signal.SIGUSR1}


def _what_ended(place: str, error: BaseException) -> _Brought:
    host = socket.gethostname()
    if isinstance(error, KeyboardInterrupt):
        return _Brought(place, stop=signal.SIGINT)
    if isinstance(error, SystemExit):
        number = _ENDED_BY.get(error.code)
        return _Brought(place, stop=number) if number else _Brought(place, code=error.code or 0)
    reason = explain(error) if isinstance(error, Exception) else None
    if reason is not None:
        return _Brought(place, error=reason, host=host)
    trace = "".join(traceback.format_exception(error))
    return _Brought(place, error=f"{type(error).__name__}: {error}", trace=trace, host=host)


def _stopping(number: int) -> BaseException:
    if number == signal.SIGINT:
        return KeyboardInterrupt()
    return SystemExit(STOPPED_EARLY if number == signal.SIGUSR1 else TERMINATED)


@contextmanager
def signals_later() -> Iterator[None]:
    """Lets SIGTERM, SIGUSR1 and Ctrl-C act when the body has ended. A second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with stop_requests(earlier=False) as stop:
        yield
        number = stop()
    if number:
        signal.raise_signal(number)

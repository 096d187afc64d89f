"""Decodes the answers to many clients together. One thread owns the model; all others leave requests and get pieces."""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from configs.common.notices import warn
from launch.chat.answers import AnswerText, Piece, ScoredToken

GATHER_SECONDS = 0.02  # requests that arrive within this time of a first one begin with it


class Busy(Exception):
    """So many requests wait that one more is refused."""


class Closed(Exception):
    """The batcher ended before the answers did."""


class ModelFailed(Exception):
    """A step of the model failed, and with it all answers under way."""


class Decoding(Protocol):
    """What the batcher needs of `pretrain.generation.player.Player`."""

    def add(self, request: Any) -> Sequence[int]: ...
    def step(self) -> Sequence[Any]: ...
    def cancel(self, row: int) -> None: ...


Deliver = Callable[[Sequence[Piece] | Exception], None]


@dataclass(eq=False)
class Ticket:
    """A request that waits or is answered.

    Attributes:
        request: what the player decodes.
        texts: one per answer.
        deliver: called from the batcher's thread with the pieces of a step, or with the error that ends the request.
    """

    request: Any
    texts: Sequence[AnswerText]
    deliver: Deliver
    rows: dict[int, int] = field(default_factory=dict)  # the player's row -> number of the answer
    cancelled: bool = False


class Batcher:
    """Owns a player in a thread of its own.

    Requests are admitted in the order of their arrival, as soon as there are rows for all their answers.
    """

    def __init__(self, player: Decoding, rows: int = 32, waiting: int = 64, gather: float = GATHER_SECONDS) -> None:
        """`rows`: answers decoded at a time; `waiting`: requests that may wait for rows."""
        self.rows, self._limit, self._gather = rows, waiting, gather
        self.steps = 0  # steps that the player has made
        self._player = player
        self._waiting: deque[Ticket] = deque()
        self._active: dict[int, Ticket] = {}  # by the player's row
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def load(self) -> tuple[int, int]:
        """Answers that are being decoded for somebody, and requests of somebody that wait."""
        with self._changed:
            active = sum(not ticket.cancelled for ticket in self._active.values())
            return active, sum(not ticket.cancelled for ticket in self._waiting)

    def submit(self, *tickets: Ticket) -> None:
        """Queues requests, all or none.

        Raises:
            Busy: when too many wait.
            Closed: when the batcher has ended.
        """
        with self._changed:
            if self._closing:
                raise Closed
            if self._waiting and len(self._waiting) + len(tickets) > self._limit:
                raise Busy
            self._waiting.extend(tickets)
            self._changed.notify_all()

    def cancel(self, ticket: Ticket) -> None:
        """Frees the rows of a request, or its place among those that wait. Nothing is delivered any more."""
        with self._changed:
            ticket.cancelled = True
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the thread after the step under way; requests that are not answered get `Closed`."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    # ------------------------------------------------------------------------------------------------ the thread's own
    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._admit()
                if self._active:
                    self._step()
            except Exception as error:  # all that the model was busy with fails, and the server goes on
                if isinstance(error, ValueError):
                    warn(f"the answers under way failed: {error}")
                else:
                    traceback.print_exception(error)
                self._fail(ModelFailed(str(error) or type(error).__name__))
        self._fail(Closed())
        for ticket in self._waiting:
            self._deliver(ticket, Closed())

    def _wait_for_work(self) -> bool:
        """Returns False when the batcher closes."""
        with self._changed:
            while not (self._closing or self._waiting or self._active):
                self._changed.wait()
            if not self._active and not self._closing:
                until = time.monotonic() + self._gather
                while not self._closing and (left := until - time.monotonic()) > 0:
                    self._changed.wait(left)
            return not self._closing

    def _admit(self) -> None:
        with self._changed:
            left = [row for row, ticket in self._active.items() if ticket.cancelled]
            self._waiting = deque(ticket for ticket in self._waiting if not ticket.cancelled)
        for row in left:
            self._free(row)
        while (ticket := self._next()) is not None:
            try:
                rows = self._player.add(ticket.request)
            except Exception as error:  # of this request alone
                self._deliver(ticket, error)
                continue
            ticket.rows = {row: number for number, row in enumerate(rows)}
            with self._changed:
                self._active |= dict.fromkeys(rows, ticket)

    def _next(self) -> Ticket | None:
        with self._changed:
            if self._waiting and len(self._active) + len(self._waiting[0].texts) <= self.rows:
                return self._waiting.popleft()
            return None

    def _step(self) -> None:
        events = self._player.step()
        self.steps += 1
        pieces: dict[Ticket, list[Piece]] = {}
        for event in events:
            ticket = self._active.get(event.row)
            if ticket is None:
                continue
            piece = ticket.texts[ticket.rows[event.row]].push(ScoredToken.of(event), event.finished)
            pieces.setdefault(ticket, []).append(piece)
            if event.finished is not None:
                with self._changed:
                    del self._active[event.row]
            elif piece.finish is not None:  # a stop string, which the player does not know
                self._free(event.row)
        for ticket, made in pieces.items():
            self._deliver(ticket, made)

    def _free(self, row: int) -> None:
        self._player.cancel(row)
        with self._changed:
            del self._active[row]

    def _deliver(self, ticket: Ticket, content: Sequence[Piece] | Exception) -> None:
        if ticket.cancelled:
            return
        try:
            ticket.deliver(content)
        except Exception:  # whoever asked is gone
            self.cancel(ticket)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            tickets = set(self._active.values())
            rows = list(self._active)
            self._active.clear()
        for row in rows:
            try:
                self._player.cancel(row)
            except Exception:
                continue
        for ticket in tickets:
            self._deliver(ticket, error)

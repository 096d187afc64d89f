"""Notes signals that ask training to stop; training obeys after the step under way. Free of torch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from configs.common.exit_codes import pending_signal

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


# One order to stop reaches a rank more than once: from its launcher, and from whoever told that one's process group.
_SAME_ORDER_SECONDS = 2.0


class StoppedEarly(Exception):
    """A signal ended training before its last step; the state is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def stop_requests(earlier: bool = True) -> Iterator[Callable[[], int]]:
    """While open, SIGTERM, SIGUSR1 and SIGINT are noted; yields a function that tells the first one's number, or 0.

    The same signal once more, two seconds later or after that, ends the process at once with 128 + its number.
    Another signal does not: at a time limit SIGTERM follows SIGUSR1, and the save under way may still succeed.
    With `earlier`, a signal that came earlier and did not end the command is the first one.
    """
    received: dict[int, float] = {}
    if earlier and (pending := pending_signal()):
        received[pending] = time.monotonic()

    def note(number: int, _frame: object) -> None:
        if time.monotonic() - received.setdefault(number, time.monotonic()) >= _SAME_ORDER_SECONDS:
            _end(number)

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield lambda: next(iter(received), 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int) -> NoReturn:
    # Not through exceptions: a collective or a library may hold the interpreter. Files have their names by renames.
    os.write(2, f"\nsecond {signal.Signals(number).name}: stopped at once, without saving\n".encode())
    os._exit(128 + number)

"""Calls a user's reward function, and stops the run with one clear error where it misbehaves."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from types import FrameType
from typing import Any

from configs.safety.user_code import UserCode
from configs.schema.objectives import CustomReward
from pretrain.rewards.answers import Reward
from pretrain.rewards.completion import Completion

_SHOWN = 80


class _TooSlow(BaseException):
    """The function took longer than allowed. Not an `Exception`, because user code catches those."""


class CustomFunction:
    """A function `(text, reference) -> float | Reward` of the user, with a time limit for each answer."""

    def __init__(self, settings: CustomReward, setting: str) -> None:
        """`setting`: its place in the recipe, for messages.

        Raises:
            ValueError: when the code may not run, cannot be run, or is not called like this.
        """
        self.code = UserCode.read(settings.code, settings.options).allowed(setting)
        self.code.check_call("text", "reference")
        self._function = self.code.load()
        self._seconds = settings.seconds

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.code.name

    def __call__(self, completion: Completion) -> Reward:
        """Calls the function on an answer.

        Raises:
            ValueError: when it raises, takes too long, or gives something else than a finite number or a `Reward`.
        """
        try:
            with _time_limit(self._seconds):
                result = self._function(completion.text, completion.reference, **self.code.options)
        except _TooSlow:
            raise self._wrong(
                completion, f"took more than {self._seconds:g} s; raise `seconds` of the recipe"
            ) from None
        except Exception as error:
            raise self._wrong(completion, f"raised {type(error).__name__}: {error}") from error
        return self._checked(completion, result)

    def _checked(self, completion: Completion, result: Any) -> Reward:
        if isinstance(result, Reward):
            value, matched, flags = result.value, result.matched, tuple(map(str, result.flags))
        else:
            value, matched, flags = result, None, ()
        # numpy's and torch's numbers of one element count as numbers
        if not isinstance(value, Real) and hasattr(value, "item"):
            value = value.item()
        if not isinstance(value, Real):
            raise self._wrong(completion, f"gave a {type(result).__name__}; give a number or a Reward")
        if not math.isfinite(value):
            raise self._wrong(completion, f"gave {value}; a reward is a finite number")
        return Reward(float(value), None if matched is None else str(matched), flags)

    def _wrong(self, completion: Completion, what: str) -> ValueError:
        start = completion.text[:_SHOWN] + ("…" if len(completion.text) > _SHOWN else "")
        return ValueError(
            f"reward {self.code.file}:{self.name} {what} (answer: {start!r}, reference: {completion.reference!r}); "
            "correct the function. The run continues from its last checkpoint"
        )


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises `_TooSlow` in the body after some seconds of the clock: a function may wait as well as compute.

    Only the main thread can be interrupted. An outer timer, such as that of a test, is set again afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise _TooSlow

    began = time.monotonic()
    handler = signal.signal(signal.SIGALRM, ring)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - (time.monotonic() - began)), interval)

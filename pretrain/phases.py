"""Names where in a step a rank is. Training enters phases; the rank's heartbeat reads and shows them. Free of torch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Phase(StrEnum):
    """A part of training that takes time, in the words that people read."""

    BETWEEN_STEPS = "between steps"
    WAITING_FOR_DATA = "waiting for data"
    ROLLOUT = "drawing answers"
    SUM_TARGETS = "all-reduce of the targets"
    FORWARD = "forward"
    BACKWARD = "backward and all-reduce of the gradients"
    SUM_LOSS = "all-reduce of the loss"
    UPDATE = "update"
    VALIDATION = "validation"
    EVALUATION = "evaluation"
    SAVING = "checkpoint"
    COMPARING_RANKS = "all-gather of digests"
    COMPARING_KERNELS = "comparing fast code with plain code"
    WORKING = "reading and writing"
    SCORING = "scoring"
    WAITING = "waiting for the other ranks"
    ENDED = "ended because of another rank"


class ReportPhase(Protocol):
    """Is told of every phase that begins; a step, counted from 1, stays until the next one is given."""

    def __call__(self, phase: Phase, step: int | None = None) -> None: ...


def report_nothing(phase: Phase, step: int | None = None) -> None:
    """For an engine that nobody watches."""


@dataclass(frozen=True)
class PhaseNow:
    """A phase and when it began."""

    phase: Phase
    step: int  # under way, counted from 1; the last one made when the phase is BETWEEN_STEPS
    since: float  # Unix time
    began: float  # monotonic clock, in seconds


class CurrentPhase:
    """The phase that this rank is in."""

    now: PhaseNow  # replaced as a whole, so that another thread may read it

    def __init__(self) -> None:
        self.now = PhaseNow(Phase.BETWEEN_STEPS, 0, time.time(), time.monotonic())

    def enter(self, phase: Phase, step: int | None = None) -> None:
        """Notes that `phase` begins; a step (from 1) stays until the next one is given."""
        self.now = PhaseNow(phase, self.now.step if step is None else step, time.time(), time.monotonic())

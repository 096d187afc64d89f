"""Defines what a reader is asked for log-likelihoods: windows of tokens, and their scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]


class Report(Protocol):
    """Receives progress; the `update` of a progress bar is one."""

    def __call__(self, completed: float, note: str = "", total: float | None = None) -> None: ...


@dataclass(frozen=True, eq=False)
class Window:
    """Tokens of one sequence in one forward pass: all but the last are inputs, the last `scored` are targets.

    Attributes:
        tokens: (n,) ids.
        scored: number of targets, 1 to n - 1.
        weights: (scored,) of the targets; None: 1 each. A target of weight 0 is not scored.
    """

    tokens: Tokens
    scored: int
    weights: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        assert 1 <= self.scored < len(self.tokens)
        assert self.weights is None or self.weights.shape == (self.scored,)


@dataclass(frozen=True)
class Score:
    """Negative log-likelihood of a window's targets, and whether greedy decoding predicts all of them.

    Attributes:
        variance: of `nats`, where they are estimated by draws (`eval.reading.bound`).
    """

    nats: float
    greedy: bool
    variance: float = 0.0


def sliding_windows(tokens: Tokens, first: int, context_length: int, stride: int) -> Iterator[Window]:
    """Cuts a sequence into windows that score each of `tokens[first:]` exactly once.

    The first window scores as many tokens as fit. Each later one scores `stride` new tokens, with as much context as
    fits. With `stride == context_length` these are lm-eval's rolling windows.

    Args:
        tokens: (n,) ids.
        first: number of leading tokens that are context only, at least one.
        context_length: maximum number of tokens in a forward pass.
        stride: new tokens per window, 1 to `context_length`.
    """
    assert first >= 1 and 1 <= stride <= context_length
    done, end = first, min(len(tokens), max(context_length + 1, first + stride))
    while done < len(tokens):
        yield Window(tokens[max(0, end - 1 - context_length) : end], end - done)
        done, end = end, min(len(tokens), end + stride)

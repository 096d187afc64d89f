"""The one core of likelihood scoring: token windows in, summed nats out.

Shapes: B windows of a batch, T positions, D width, V vocabulary, N scored positions of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from pretrain.model.generate import NO_PROBABILITIES
from pretrain.model.transformer import Transformer

# The (N, V) logits of one step of the output projection stay below this.
_LOGIT_BYTES = 256 * 2**20

Tokens = npt.NDArray[np.int64]


class Report(Protocol):
    """How long work tells how far it is; a progress bar's `update` is one."""

    def __call__(self, completed: float, note: str = "", total: float | None = None) -> None: ...


@dataclass(frozen=True)
class Window:
    """One forward pass for one sequence: the model reads all tokens but the last; the last `scored` are predicted."""

    tokens: Tokens
    scored: int

    def __post_init__(self) -> None:
        assert 1 <= self.scored < len(self.tokens)


@dataclass(frozen=True)
class Score:
    """Negative log-likelihood of a window's scored tokens, and whether greedy decoding would have written them."""

    nats: float
    greedy: bool


def sliding_windows(tokens: Tokens, first: int, context_length: int, stride: int) -> Iterator[Window]:
    """Cuts a sequence into windows that score each of `tokens[first:]` exactly once.

    The first window predicts as much as fits; each later one `stride` new tokens, reading as much context as fits.
    With `stride == context_length` these are lm-eval's rolling windows.

    Args:
        tokens: (n,) ids; the first `first` are context only, at least one.
        context_length: most tokens the model reads at once.
        stride: new tokens per window, 1 to `context_length`.
    """
    assert first >= 1 and 1 <= stride <= context_length
    done, end = first, min(len(tokens), max(context_length + 1, first + stride))
    while done < len(tokens):
        yield Window(tokens[max(0, end - 1 - context_length) : end], end - done)
        done, end = end, min(len(tokens), end + stride)


def score_windows(
    model: Transformer, windows: Sequence[Window], vocab_size: int, batch_size: int, report: Report | None = None
) -> list[Score]:
    """Scores windows; the result does not depend on `batch_size` (fp32 rounding of matrix products apart).

    Windows of similar length share a batch and are padded on the right, where causal attention never looks.

    Args:
        model: in evaluation mode.
        vocab_size: ids of the tokenizer. The rows that only pad the embedding can never occur and get no probability,
            as in the exported model, which has none.
        report: called with the number of windows done, and of all.

    Raises:
        ValueError: the model's logits are no numbers.
    """
    order = sorted(range(len(windows)), key=lambda index: len(windows[index].tokens), reverse=True)
    scores: list[Score | None] = [None] * len(windows)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        for index, score in zip(indices, _score_batch(model, [windows[i] for i in indices], vocab_size), strict=True):
            if not math.isfinite(score.nats):
                raise ValueError(NO_PROBABILITIES)
            scores[index] = score
        if report is not None:
            report(start + len(indices), total=len(windows))
    return [score for score in scores if score is not None]


@torch.inference_mode()
def _score_batch(model: Transformer, batch: Sequence[Window], vocab_size: int) -> list[Score]:
    device = next(model.parameters()).device
    width = max(len(window.tokens) for window in batch) - 1
    inputs = np.zeros((len(batch), width), dtype=np.int64)  # (B, T)
    rows, columns, targets = [], [], []
    for row, window in enumerate(batch):
        length = len(window.tokens) - 1
        inputs[row, :length] = window.tokens[:-1]
        rows.append(np.full(window.scored, row))
        columns.append(np.arange(length - window.scored, length))
        targets.append(window.tokens[-window.scored :])
    hidden = model.backbone(torch.from_numpy(inputs).to(device))  # (B, T, D)
    selected = hidden[torch.from_numpy(np.concatenate(rows)), torch.from_numpy(np.concatenate(columns))]  # (N, D)
    nats, greedy = _score_positions(model, selected, torch.from_numpy(np.concatenate(targets)).to(device), vocab_size)
    starts = np.cumsum([0] + [window.scored for window in batch[:-1]])
    totals, matches = np.add.reduceat(nats, starts), np.logical_and.reduceat(greedy, starts)
    return [Score(float(total), bool(match)) for total, match in zip(totals, matches, strict=True)]


def _score_positions(
    model: Transformer, hidden: torch.Tensor, targets: torch.Tensor, vocab_size: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Nats (N,) in float64 and greedy matches (N,) of targets (N,) under hidden states (N, D)."""
    step = max(1, _LOGIT_BYTES // (4 * model.vocab_size))
    nats, greedy = [], []
    for states, ids in zip(torch.split(hidden, step), torch.split(targets, step), strict=True):
        logits = model.head(states)[:, :vocab_size].float()  # (N, V)
        nats.append(torch.nn.functional.cross_entropy(logits, ids, reduction="none").double().cpu().numpy())
        greedy.append((logits.argmax(dim=-1) == ids).cpu().numpy())
    return np.concatenate(nats), np.concatenate(greedy)

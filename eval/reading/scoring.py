"""Computes the summed nats of token windows; all likelihood scores use it.

Shapes: B windows of a batch, T positions, D width, V vocabulary, N scored positions of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from eval.reading.windows import Report, Score, Window
from pretrain.generation.sampling import NO_PROBABILITIES
from pretrain.model.transformer import Transformer

# Maximum size of the (N, V) logits of one step of the output projection.
_LOGIT_BYTES = 256 * 2**20


def score_windows(
    model: Transformer, windows: Sequence[Window], vocab_size: int, batch_size: int, report: Report | None = None
) -> list[Score]:
    """Scores windows. The result does not depend on `batch_size`, except for fp32 rounding of matrix products.

    Windows of similar length share a batch. They are padded on the right, which causal attention ignores.

    Args:
        model: in evaluation mode.
        windows: the windows to score.
        vocab_size: number of ids of the tokenizer. Padding rows of the embedding get no probability, since the exported
            model has none.
        batch_size: windows per forward pass.
        report: called with the number of windows done and the total.

    Raises:
        ValueError: when the model's logits are NaN or infinite.
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
    weights = np.concatenate([np.ones(one.scored) if one.weights is None else one.weights for one in batch])
    nats, greedy = nats * weights, greedy | (weights == 0)
    starts = np.cumsum([0] + [window.scored for window in batch[:-1]])
    totals, matches = np.add.reduceat(nats, starts), np.logical_and.reduceat(greedy, starts)
    return [Score(float(total), bool(match)) for total, match in zip(totals, matches, strict=True)]


def _score_positions(
    model: Transformer, hidden: torch.Tensor, targets: torch.Tensor, vocab_size: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Computes nats (N,) in float64 and greedy matches (N,) of targets (N,) from hidden states (N, D)."""
    step = max(1, _LOGIT_BYTES // (4 * model.vocab_size))
    nats, greedy = [], []
    for states, ids in zip(torch.split(hidden, step), torch.split(targets, step), strict=True):
        logits = model.head(states)[:, :vocab_size].float()  # (N, V)
        nats.append(torch.nn.functional.cross_entropy(logits, ids, reduction="none").double().cpu().numpy())
        greedy.append((logits.argmax(dim=-1) == ids).cpu().numpy())
    return np.concatenate(nats), np.concatenate(greedy)

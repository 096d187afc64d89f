"""Sums over the pairs of a batch: what losses of pairs have in common."""

from __future__ import annotations

import torch
from torch import Tensor

ACCURACY, MARGIN = "accuracy", "margin"  # the share of pairs with the chosen ahead, and by how much


def answer_log_probs(log_probs: Tensor, weights: Tensor) -> Tensor:
    """(B,) fp64 log-probability of each row's weighted targets; both arguments (B, T)."""
    return (log_probs.double() * weights).sum(1)


def sums_over_pairs(losses: Tensor, statistics: tuple[Tensor, ...], present: Tensor) -> Tensor:
    """(1 + S,) fp32: the sums over the pairs that are present; all arguments (P,). Empty rows of a batch are none."""
    columns = (losses, *statistics)
    return torch.stack([torch.where(present, column, 0).sum(dtype=torch.float64) for column in columns]).float()

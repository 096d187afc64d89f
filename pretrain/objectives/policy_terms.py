"""Computes what a drawn token adds to the loss of a policy, from log-probabilities alone.

All shapes are (B, T), one number a target. Sources: PPO's clipped ratio (arXiv:1707.06347), with a bound of its own for
each direction (DAPO, arXiv:2503.14476); estimators of the divergence (Schulman 2020, joschu.net/blog/kl-approx.html).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def clipped_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """-min(ratio x advantage, ratio within [1 - low, 1 + high] x advantage), and where the clip took the gradient away.

    The ratio is that of two training forwards, new to old; the sampler's numbers have no part in it.
    """
    ratio = (log_probs - old_log_probs).exp()
    low, high = 1 - clip[0], 1 + clip[1]
    loss = -torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    clipped = ((ratio < low) & (advantages < 0)) | ((ratio > high) & (advantages > 0))
    return loss, clipped


def divergence(log_probs: Tensor, reference_log_probs: Tensor, estimator: Estimator) -> Tensor:
    """An estimate of KL(policy || reference) from one drawn token.

    k1 = log p - log q, k2 = k1^2 / 2, k3 = e^-k1 - 1 + k1. The value only: the gradient of k1 is 0 on
    average, and that of k3 belongs to the other direction of the divergence. See `divergence_loss`.
    """
    k1 = log_probs - reference_log_probs
    if estimator == "k1":
        return k1
    return k1.square() / 2 if estimator == "k2" else torch.expm1(-k1) + k1


def divergence_loss(
    log_probs: Tensor, old_log_probs: Tensor, reference_log_probs: Tensor, estimator: Estimator
) -> Tensor:
    """A loss whose mean over drawn tokens has the gradient of KL(policy || reference) of the next token.

    k1 and k3 are multiplied by the ratio to the policy that drew (arXiv:2512.02556; trl's `use_bias_correction_kl`).
    That of k2 is right as it stands. None sees what a token does to the divergence of those after it: only `where:
    reward` does.
    """
    value = divergence(log_probs, reference_log_probs, estimator)
    return value if estimator == "k2" else value * (log_probs - old_log_probs).exp()

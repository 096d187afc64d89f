"""Draws tokens by counted noise: one uniform number a token, a pure function of a seed, a name and three counts.

No generator has a state, so there is none to save, and a draw depends on no other row, rank or earlier draw. A row of
text has a *key*; the number at its `position` is the `position`-th output of SplitMix64 from that key, with the 53 bits
that a double holds. The token is the first whose cumulative probability exceeds that number (inverse CDF).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.batches.splitmix import Counts
from pretrain.batches.splitmix import key_uniforms as key_uniforms
from pretrain.batches.splitmix import noise_keys as noise_keys


def uniforms(seed: int, name: str, slots: Counts, samples: Counts, position: Counts | int) -> Tensor:
    """The uniform numbers in [0, 1), fp64 (R,), of R rows at a position (or each at its own)."""
    return torch.from_numpy(key_uniforms(noise_keys(seed, name, slots, samples), position))


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The token of each row: the first whose cumulative probability exceeds the row's number.

    Args:
        probabilities: (R, V), 0 or more, of any sum above 0: a row need not be normalised.
        uniforms: (R,) fp64 in [0, 1).

    Returns:
        (R,) int64. A token of probability 0 is never drawn.
    """
    tokens, _ = draw_with_total(probabilities, uniforms)
    return tokens


def draw_with_total(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """As `draw`, and the sum of each row's weights (R,) fp64."""
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)  # (R, V)
    total = cumulative[:, -1:]
    # u * total may round up to the total itself, which no cumulative sum exceeds.
    target = torch.minimum(uniforms.unsqueeze(-1) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1), total.squeeze(-1)

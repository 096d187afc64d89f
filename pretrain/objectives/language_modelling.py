"""Trains the negative log-likelihood of the next token, in nats: language modelling."""

from __future__ import annotations

from torch import Tensor

from pretrain.objectives.objective import LossModule


class LanguageModelling(LossModule):
    """Sum of weighted nats."""

    def loss(self, tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None) -> Tensor:
        """The nats themselves."""
        return self.nats(tokens, targets, weights, positions)

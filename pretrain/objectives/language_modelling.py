"""Language modelling: the negative log-likelihood of the next token, in nats."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pretrain.objectives.base import LossModule


class LanguageModelling(LossModule):
    """Sum of weighted nats. Divided by the global sum of weights it is the loss of the step."""

    def forward(self, tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None = None) -> Tensor:
        """Sum over (B, T) of weight x -log p(target | tokens before it); the log-softmax is taken in fp32."""
        logits = self.model(tokens, positions=positions)  # (B, T, V)
        nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        return (nats * weights.flatten()).sum()

"""Language modelling: the negative log-likelihood of the next token, in nats."""

from __future__ import annotations

from torch import Tensor

from pretrain.model import Transformer
from pretrain.objectives.base import LossModule


class LanguageModelling(LossModule):
    """Sum of weighted nats. Divided by the global sum of weights it is the loss of the step."""

    def __init__(self, model: Transformer, chunk: int | None = None) -> None:
        """`chunk`: positions whose logits exist at a time (`train.loss_chunk`)."""
        super().__init__(model)
        self._chunk = chunk

    def forward(self, tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None = None) -> Tensor:
        """Sum over (B, T) of weight x -log p(target | tokens before it); the log-softmax is taken in fp32."""
        return self.model.loss(tokens, targets, weights, positions, self._chunk)

"""Defines what an objective is to the training loop: a module that gives a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from pretrain.model.transformer import Transformer


class LossModule(nn.Module, ABC):
    """The model together with its loss: the unit that DeepSpeed wraps and torch.compile compiles.

    The loss belongs inside, because ZeRO-3 has the weights only while a forward runs, and because a compiler can then
    fuse the projection to the vocabulary with the loss. All weights are the model's: an objective has none of its own.
    """

    def __init__(self, model: Transformer, chunk: int | None = None) -> None:
        """`chunk`: positions whose logits exist at a time (`train.loss_chunk`)."""
        super().__init__()
        self.model = model
        self.chunk = chunk

    def forward(self, tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None = None) -> Tensor:
        """`loss` in training; outside of it `nats`, so that validation is comparable between objectives.

        Args:
            tokens: (B, T) int64.
            targets: (B, T) int64, the token after each of `tokens`.
            weights: (B, T) float32, how much each target counts.
            positions: (B, T) int64 of each token in its document, where documents are not to see each other.
        """
        take = self.loss if self.training else self.nats
        return take(tokens, targets, weights, positions)

    @abstractmethod
    def loss(self, tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None) -> Tensor:
        """Sum (not mean) of the loss over targets, each times its weight; a scalar in fp32. Shapes as in `forward`.

        Divided by the global sum of weights it is the loss of the step, and its gradient that of the step.
        """

    def nats(self, tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None) -> Tensor:
        """Sum over (B, T) of weight x -log p(target | tokens before it); the log-softmax is taken in fp32."""
        return self.model.loss(tokens, targets, weights, positions, self.chunk)

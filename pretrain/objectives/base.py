"""What the training loop asks of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from pretrain.model import Transformer


class LossModule(nn.Module, ABC):
    """The model together with its loss: the unit that DeepSpeed wraps and torch.compile compiles.

    The loss belongs inside, because ZeRO-3 has the weights only while a forward runs, and because a compiler can then
    fuse the projection to the vocabulary with the loss.
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def forward(self, tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None = None) -> Tensor:
        """Sum (not mean) of the loss over targets, each times its weight; a scalar in fp32.

        Args: tokens (B, T) int64; targets (B, T) int64; weights (B, T) float32; positions (B, T) int64 of each token in
            its document, where documents are not to see each other.
        """

"""Defines what the engine trains: a module that holds the model and gives a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from pretrain.model.transformer import Transformer
from pretrain.model.weight_names import named_weights, transformers

Take = Callable[..., Tensor]  # of the arguments of `LossModule.forward`


class LossModule(nn.Module, ABC):
    """The model together with its loss: the unit that DeepSpeed wraps and torch.compile compiles.

    The loss belongs inside, because ZeRO-3 has the weights only while a forward runs, and because a compiler can then
    fuse the projection to the vocabulary with the loss.

    A module of this project may hold weights beside the model's, in submodules whose names begin as
    `pretrain.model.weight_names.EXTRA_WEIGHTS` lists; checkpoints keep them under these names.
    Code of the user has none of its own.
    """

    # Names of the sums that `loss` returns behind the loss, in their order: `StepResult.statistics` divides each by the
    # batch's `count`, as it does the loss.
    stat_names: tuple[str, ...] = ()
    # Consecutive rows that only make sense together, such as the two of a pair: no micro-batch divides them.
    unit_rows: int = 1

    def __init__(self, model: Transformer, chunk: int | None = None) -> None:
        """`chunk`: positions whose logits exist at a time (`train.loss_chunk`)."""
        super().__init__()
        self.model = model
        self.chunk = chunk
        self._take: Take | None = None

    def forward(
        self, tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None = None, **columns: Tensor
    ) -> Tensor:
        """`loss` in training; outside of it `nats`, so that validation is comparable between objectives.

        Args:
            tokens: (B, T) int64.
            targets: (B, T) int64, the token after each of `tokens`.
            weights: (B, T) float32, how much each target counts.
            positions: (B, T) int64 of each token in its document, where documents are not to see each other.
            columns: what else `Batch.columns` holds, each (B, T) or (B,).
        """
        if self._take is not None:
            return self._take(tokens, targets, weights, positions, **columns)
        if self.training:
            return self.loss(tokens, targets, weights, positions, **columns)
        return self.nats(tokens, targets, weights, positions)

    @abstractmethod
    def loss(
        self, tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None, **columns: Tensor
    ) -> Tensor:
        """Sum (not mean) of the loss over what counts, in fp32: a scalar, or (1 + S,) with the sums of `stat_names`.

        Divided by the global `Batch.count` it is the loss of the step, and its gradient that of the step. Only the
        first element gets a gradient. Shapes of arguments as in `forward`. An objective whose batches have no columns
        may leave `columns` out.
        """

    def nats(self, tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None) -> Tensor:
        """Sum over (B, T) of weight x -log p(target | tokens before it); the log-softmax is taken in fp32."""
        return self.model.loss(tokens, targets, weights, positions, self.chunk)

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters under their names in checkpoints: the model's own ones without a prefix."""
        return named_weights(self)

    def init_parameter(self, name: str, value: Tensor) -> None:
        """Fills the weight with this name in checkpoints as at the start of training: heads with zeros."""
        for prefix, model in transformers(self):
            own = name.removeprefix(prefix)
            if name.startswith(prefix) and own in dict(model.named_parameters()):
                model.init_parameter(own, value)
                return
        nn.init.zeros_(value)

    @contextmanager
    def taking(self, take: Take) -> Iterator[None]:
        """Inside, `forward` gives `take(tokens, targets, weights, positions, **columns)` in place of a loss.

        What is asked of the model goes through `forward`, because DeepSpeed's hooks are on it.
        """
        self._take = take
        try:
            yield
        finally:
            self._take = None

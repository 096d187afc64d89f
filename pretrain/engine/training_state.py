"""Reads and sets what training changes: weights, optimizer moments, counters and the loss scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.engine.deepspeed_layout import fragments
from pretrain.engine.deepspeed_private import Layout
from pretrain.model.weight_names import named_weights
from pretrain.parallel.fragments import Fragment, full_shape, split_between_ranks
from pretrain.parallel.ranks import Ranks
from pretrain.parallel.tensor import local


class TrainingState:
    """This rank's part of the state, in DeepSpeed's own buffers."""

    def __init__(
        self, engine: Any, layout: Layout, module: nn.Module, ranks: Ranks, tensor: int, has_loss_scale: bool
    ) -> None:
        """`engine`: DeepSpeed's, with the parameters of `module`; `tensor`: ranks that share each matrix."""
        self._engine, self._layout, self._module = engine, layout, module
        self._ranks, self._tensor, self._has_loss_scale = ranks, tensor, has_loss_scale

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters under their names in checkpoints (`pretrain.model.weight_names`)."""
        return named_weights(self._module)

    def shapes(self) -> dict[str, list[int]]:
        """The full shape of every parameter."""
        return {name: list(full_shape(parameter)) for name, parameter in self.parameters()}

    @contextmanager
    def gathered(self, parameter: nn.Parameter, written: bool = True) -> Iterator[None]:
        """Makes a parameter whole on every rank inside; what the first one writes there, all have afterwards.

        `written` False: nobody writes, and nothing is sent back.
        """
        import deepspeed

        divided = self._layout is Layout.SUBGROUPS
        modifier = 0 if written else None
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=modifier, enabled=divided):
            yield

    def set_weights(self, read: Callable[[str], Tensor]) -> None:
        """Sets every weight from `read(name)`, a whole fp32 tensor on the CPU; master copies take it unrounded.

        Moments and counters become those of an optimizer that has made no update.
        """
        pieces: dict[str, list[Fragment]] = {}
        for piece in self.fragments():
            pieces.setdefault(piece.name, []).append(piece)
        for name, parameter in self.parameters():
            value = read(name)
            with self.gathered(parameter), torch.no_grad():
                parameter.copy_(local(parameter, value))
            for piece in pieces.get(name, []):
                piece.weight.copy_(piece.of(value.flatten()[piece.offset :]))
                piece.updates.zero_()
                for moment in piece.moments.values():
                    moment.zero_()

    def fragments(self) -> list[Fragment]:
        """This rank's pieces of fp32 weights and moments, as live views; at stage 0 all of them on every rank."""
        return fragments(self._engine, self._layout, self.parameters())

    def own_fragments(self) -> list[Fragment]:
        """The pieces that this rank writes to a checkpoint: of all ranks together each element once."""
        pieces = self.fragments()
        if self._ranks.rank % self._tensor:  # what is whole on all ranks of a group belongs to the first
            divided = {name for name, parameter in self.parameters() if hasattr(parameter, "shard")}
            pieces = [piece for piece in pieces if piece.name in divided]
        if self._layout is not Layout.WHOLE:
            return pieces
        return split_between_ranks(pieces, self._ranks.rank // self._tensor, self._ranks.count // self._tensor)

    def updates(self) -> int:
        """Updates that the optimizer has made; fewer than steps when fp16 skipped some."""
        return int(self.fragments()[0].updates.item())

    def loss_scale(self) -> dict[str, float]:
        """The state of fp16's loss scaling; empty in other precisions."""
        return {key: value for key, value in self._scaler().items() if isinstance(value, int | float)}

    def set_loss_scale(self, state: dict[str, float]) -> None:
        """Restores `loss_scale`."""
        self._scaler().update(state)

    def _scaler(self) -> dict[str, Any]:
        return vars(self._engine.optimizer.loss_scaler) if self._has_loss_scale else {}

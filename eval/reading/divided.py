"""Reads with a model that no device holds alone: its large matrices are divided between the ranks, as at ZeRO-3.

Each rank keeps an equal part of the matrices of every block. A matrix is whole inside its product alone: there the
ranks bring their parts together. Embeddings, norms and biases, a small part of a large model, are whole on every rank.

The ranks must make their forward passes together, though they read different texts. So before a pass each says whether
it has one, and a rank that has none brings its parts all the same. Training's own ZeRO-3 asks for more: it wants equal
passes on all ranks, and keeps the optimizer's state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from eval.reading.reader import Reader
from eval.reading.windows import Report, Score, Window
from pretrain.checkpoint.load_weights import open_weights
from pretrain.checkpoint.manifest import CheckpointInfo
from pretrain.generation.player import Answer, Request
from pretrain.model.transformer import Transformer
from pretrain.parallel.lockstep import Lockstep, signals_later

T = TypeVar("T")


class DividedWeights:
    """The matrices of a model in the order of a forward pass, each divided between the ranks.

    Args:
        ranks: which ranks share them, in the default process group.
        device: of this rank's parts.
        dtype: of the matrices.
    """

    def __init__(self, ranks: Lockstep, device: torch.device, dtype: torch.dtype) -> None:
        self._ranks, self._device, self._dtype = ranks, device, dtype
        self._parts: list[Tensor] = []
        self._shapes: list[torch.Size] = []
        self._whole = torch.empty(0, dtype=dtype, device=device)  # of one matrix at a time
        self._next = 0  # of the pass under way; 0 between passes

    def add(self, shape: torch.Size, read: Callable[[int, int], Tensor]) -> int:
        """Adds the matrix that comes next in a pass; returns its number.

        Args:
            shape: of the whole.
            read: gives elements [start, start + count) of the flattened matrix.
        """
        size = math.prod(shape)
        each = -(-size // self._ranks.count)
        start = min(size, self._ranks.rank * each)
        part = torch.zeros(each, dtype=self._dtype, device=self._device)  # the last rank's may be longer than its own
        own = min(size - start, each)
        part[:own] = read(start, own)
        self._parts.append(part)
        self._shapes.append(shape)
        if (total := each * self._ranks.count) > len(self._whole):
            self._whole = torch.empty(total, dtype=self._dtype, device=self._device)
        return len(self._parts) - 1

    def whole(self, number: int) -> Tensor:
        """Brings a matrix together; it is valid until the next one. Every pass asks for all, in order."""
        with signals_later():  # in the middle, the others would wait
            if number == 0:
                self._announce(True)
            assert number == self._next, f"matrix {number} follows {self._next - 1} in a forward pass"
            self._next = (number + 1) % len(self._parts)
            return self._together(number)

    def finish(self) -> None:
        """Takes part in the passes of the others until none has any. An interrupted pass is completed first."""
        with signals_later():
            while self._next:
                self._together(self._next)
                self._next = (self._next + 1) % len(self._parts)
            while self._announce(False):
                for number in range(len(self._parts)):
                    self._together(number)

    def _announce(self, has_pass: bool) -> bool:
        """Tells whether any rank has another pass."""
        any_has = torch.tensor([int(has_pass)])
        dist.all_reduce(any_has, op=dist.ReduceOp.MAX)
        return bool(any_has.item())

    def _together(self, number: int) -> Tensor:
        part, shape = self._parts[number], self._shapes[number]
        whole = self._whole[: len(part) * self._ranks.count]
        # As bytes: gloo does not know every dtype.
        dist.all_gather_into_tensor(whole.view(torch.uint8), part.view(torch.uint8))
        return whole[: math.prod(shape)].view(shape)


class DividedLinear(nn.Module):
    """A linear layer whose matrix is divided."""

    def __init__(self, weights: DividedWeights, number: int, linear: nn.Linear) -> None:
        super().__init__()
        self._weights, self._number = weights, number
        self.weight = torch.empty(linear.weight.shape, device="meta")  # for who asks for its shape
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) -> (…, outputs)."""
        return F.linear(x, self._weights.whole(self._number), self.bias)


def load_divided(
    checkpoint: CheckpointInfo, ranks: Lockstep, device: torch.device, dtype: torch.dtype
) -> tuple[Transformer, DividedWeights]:
    """Loads the model of a checkpoint in evaluation mode; each rank reads its part alone.

    Raises:
        ValueError: see `pretrain.checkpoint.load_weights.open_weights`.
    """
    rows, files = open_weights(checkpoint)
    with torch.device("meta"):
        model = Transformer(checkpoint.recipe.model, rows)
    weights = DividedWeights(ranks, device, dtype)
    for name, module in list(model.blocks.named_modules(prefix="blocks")):
        if isinstance(module, nn.Linear):
            read = _reader_of(files, f"{name}.weight")
            divided = DividedLinear(weights, weights.add(module.weight.shape, read), module)
            owner, _, own_name = name.rpartition(".")
            setattr(model.get_submodule(owner), own_name, divided)
    model.materialize(device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.data = files.whole(name, parameter.shape).to(device=device, dtype=dtype)
    return model.eval(), weights


def _reader_of(files: Any, name: str) -> Callable[[int, int], Tensor]:
    def read(start: int, count: int) -> Tensor:
        part: Tensor = files.part(name, start, count)
        return part

    return read


class DividedReader:
    """A reader of a divided model: after each call it takes part in the passes of the other ranks.

    All ranks must make the same calls. A share may be empty.
    """

    def __init__(self, reader: Reader, weights: DividedWeights) -> None:
        self._reader, self._weights = reader, weights
        self.context_length, self.vocab_size, self.precision = (
            reader.context_length,
            reader.vocab_size,
            reader.precision,
        )

    def score(self, windows: Sequence[Window], report: Report | None = None) -> list[Score]:
        """See `Reader.score`."""
        return self._finished(lambda: self._reader.score(windows, report))

    def generate(self, requests: Sequence[Request], report: Report | None = None) -> list[Answer]:
        """See `Reader.generate`."""
        return self._finished(lambda: self._reader.generate(requests, report))

    def rewards(self, rows: Sequence[Sequence[int]], report: Report | None = None) -> list[float]:
        """See `Reader.rewards`. Reward models are not divided."""
        return self._reader.rewards(rows, report)

    def _finished(self, work: Callable[[], T]) -> T:
        try:
            return work()
        finally:
            self._weights.finish()

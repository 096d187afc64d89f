"""Updates the matrices inside the blocks by Muon and the rest by AdamW, at every ZeRO stage.

An update is the momentum of the gradient, made orthogonal: of its singular value decomposition U S V' about U V'
remains, by a few Newton-Schulz iterations, which are matrix products (Jordan et al. 2024,
kellerjordan.github.io/posts/muon; Polar Express, arXiv:2505.16932). Momentum and weights are fp32 and lie where
DeepSpeed keeps them; DeepSpeed's own Muon is not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from configs.schema.train import Optimizer
from pretrain.optimizer.adamw import AdamW
from pretrain.optimizer.muon_exchange import Matrix, Piece, Round, exchange_pieces, plan_rounds
from pretrain.parallel.fragments import BufferRange
from pretrain.sizes.limits import MUON_ROUND_ELEMENTS

# x -> a x + b x^3 + c x^5 on the singular values. Jordan et al. 2024: the same in each iteration, steep at zero and
# near one above it. Polar Express (arXiv:2505.16932, for singular values from 0.001 on): the best of each iteration
# after those before it; the last stands for all that follow.
JORDAN = ((3.4445, -4.7750, 2.0315),)
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
# Polar Express needs singular values of at most 1, rounding included: all iterations but the last stay this far below.
SAFETY = 1.01
SMALLEST_NORM = 1e-7


def coefficients(polynomial: str, steps: int) -> list[tuple[float, float, float]]:
    """(a, b, c) of each iteration for `train.optimizer.muon.polynomial`; inputs have a Frobenius norm of at most 1."""
    if polynomial == "jordan":
        return [JORDAN[0]] * steps
    found = [POLAR_EXPRESS[min(step, len(POLAR_EXPRESS) - 1)] for step in range(steps)]
    return [(a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in found[:-1]] + found[-1:]


def orthogonalize(x: Tensor, steps: int, polynomial: str = "jordan") -> Tensor:
    """Newton-Schulz of a batch (n, small, large), small <= large, whose Frobenius norms are at most 1.

    Singular values come out near one in the dtype of `x`: between about 0.7 and 1.2 after five steps of `jordan`.
    """
    for a, b, c in coefficients(polynomial, steps):
        gram = x @ x.mT
        # a x + (b A + c A A) x as one product: its sums are over small matrices.
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        x = factor @ x
    return x


def update_scale(kind: str, rows: int, columns: int) -> float:
    """The factor of an orthogonal update, by the recipe's `train.optimizer.muon.scale`."""
    return math.sqrt(max(1.0, rows / columns)) if kind == "spectral" else 0.2 * math.sqrt(max(rows, columns))


@dataclass(frozen=True)
class _BufferGroup:
    """Buffers that are updated in one call of `step`, on all ranks at once."""

    buffers: list[Tensor]
    matrices: list[Matrix]
    rounds: list[Round]


class Muon(AdamW):
    """Groups with `rule` "muon" are updated by Muon, the others by AdamW in its fused form."""

    def __init__(
        self, groups: list[dict[str, Any]], matrices: Sequence[Matrix], settings: Optimizer, dtype: torch.dtype
    ) -> None:
        """`matrices`: those in the parameters of Muon's groups; `dtype`: what they are made orthogonal in."""
        beta1, beta2 = settings.betas
        super().__init__(groups, lr=settings.lr, betas=(beta1, beta2), eps=settings.eps, fused=True)
        self._matrices, self._settings, self._dtype = matrices, settings.muon, dtype
        self._groups: list[_BufferGroup] = []

    def attach(
        self,
        groups: list[list[Tensor]],
        ranges: Sequence[BufferRange],
        gather: Callable[[Any], list[Any]],
        device: torch.device,
    ) -> None:
        """Plans which rank works on which matrix; every rank must call it before the first step.

        For example, two ranks keep a parameter `up` that holds two matrices of 2 x 3 elements, gate (number 0, from
        element 0 on) and up (number 1, from element 6 on), cut in the middle of the second:

            rank 0  BufferRange("up", offset=0, start=8, numel=8)  elements 0-7 in its buffer from 8 on
            rank 1  BufferRange("up", offset=8, start=0, numel=4)  elements 8-11 in its buffer from 0 on

            rank 0 holds Piece(matrix=0, start=0, numel=6, buffer=0, at=8): all of the gate, which does not travel
                     and Piece(matrix=1, start=0, numel=2, buffer=0, at=14)
            rank 1 holds Piece(matrix=1, start=2, numel=4, buffer=0, at=0): with it, matrix 1 is put together

        Args:
            groups: this rank's buffers, in the lists that one call of `step` updates on all ranks at once.
            ranges: where this rank keeps which elements of the parameters.
            gather: gives every rank's value.
            device: computes.
        """
        self._device = device
        for buffers, held in zip(groups, zip(*gather(self._pieces(groups, ranges)), strict=True), strict=True):
            used = sorted({piece.matrix for pieces in held for piece in pieces})
            if not used:
                continue
            # From here on pieces count the matrices of their own group.
            position = {index: number for number, index in enumerate(used)}
            renumbered = [[piece._replace(matrix=position[piece.matrix]) for piece in pieces] for pieces in held]
            matrices = [self._matrices[index] for index in used]
            rounds = plan_rounds(matrices, renumbered, dist.get_rank(), MUON_ROUND_ELEMENTS)
            self._groups.append(_BufferGroup(buffers, matrices, rounds))
            for buffer in buffers:
                self.state[buffer] = {
                    "step": torch.zeros((), dtype=torch.float32, device=buffer.device),
                    "momentum_buffer": torch.zeros_like(buffer, requires_grad=False),
                }

    def _pieces(self, groups: list[list[Tensor]], ranges: Sequence[BufferRange]) -> list[list[Piece]]:
        """This rank's pieces, by group; their `matrix` counts all matrices, their `buffer` those of the group."""
        of_parameter: dict[str, list[int]] = {}
        for index, matrix in enumerate(self._matrices):
            of_parameter.setdefault(matrix.parameter, []).append(index)
        where = {
            id(buffer): (group, index) for group, buffers in enumerate(groups) for index, buffer in enumerate(buffers)
        }
        held: list[list[Piece]] = [[] for _ in groups]
        for kept in ranges:
            for index in of_parameter.get(kept.name, []):
                matrix = self._matrices[index]
                # Elements of the parameter that are both of the matrix and of this range.
                first = max(matrix.offset, kept.offset)
                last = min(matrix.offset + matrix.numel, kept.offset + kept.numel)
                if first < last:
                    group, buffer = where[id(kept.buffer)]
                    at = kept.start + first - kept.offset
                    held[group].append(Piece(index, first - matrix.offset, last - first, buffer, at))
        return held

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates what DeepSpeed has put into the groups and given a gradient."""
        groups = self.param_groups
        for group in groups:
            if group["rule"] == "muon":
                present = {id(buffer) for buffer in group["params"] if buffer.grad is not None}
                for buffers in self._groups:
                    if id(buffers.buffers[0]) in present:
                        self._update(buffers, group)
        self.param_groups = [group for group in groups if group["rule"] != "muon"]
        try:
            super().step()
        finally:
            self.param_groups = groups

    def _update(self, own: _BufferGroup, group: dict[str, Any]) -> None:
        updates = [self._momentum(buffer) for buffer in own.buffers]
        weights = [buffer.view(-1) for buffer in own.buffers]
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        scales = [group["lr"] * update_scale(self._settings.scale, *matrix[2:]) for matrix in own.matrices]

        def read(piece: Piece) -> Tensor:
            return updates[piece.buffer][piece.at : piece.at + piece.numel]

        def apply(piece: Piece, values: Tensor) -> None:
            weight = weights[piece.buffer][piece.at : piece.at + piece.numel]
            weight.add_(values.to(weight.device), alpha=-scales[piece.matrix])

        for now in own.rounds:
            received = exchange_pieces(now.send, now.receive, read, self._dtype, self._device) if now.gathers else []
            pieces = [(piece, read(piece)) for held in now.own.values() for piece in held] + received
            results = self._orthogonal(own.matrices, list(now.own), pieces)

            def result(piece: Piece, results: dict[int, Tensor] = results) -> Tensor:
                return results[piece.matrix].reshape(-1)[piece.start : piece.start + piece.numel]

            for held in now.own.values():
                for piece in held:
                    apply(piece, result(piece))
            if now.travels:
                for piece, values in exchange_pieces(now.give_back, now.get_back, result, self._dtype, self._device):
                    apply(piece, values)

    def _momentum(self, buffer: Tensor) -> Tensor:
        """The flat update before it is made orthogonal; takes the gradient's memory."""
        assert buffer.grad is not None, "a buffer of the matrices without a gradient"
        gradient, state = buffer.grad.view(-1), self.state[buffer]
        average = state["momentum_buffer"].view(-1).lerp_(gradient, 1 - self._settings.momentum)
        state["step"] += 1
        update: Tensor = gradient.lerp_(average, self._settings.momentum) if self._settings.nesterov else average
        return update

    def _orthogonal(
        self, matrices: list[Matrix], own: list[int], pieces: list[tuple[Piece, Tensor]]
    ) -> dict[int, Tensor]:
        """The orthogonal matrices (rows, columns) with the indices `own`, put together from their pieces."""
        shapes: dict[tuple[int, int], list[int]] = {}
        for index in own:
            small, large = sorted(matrices[index][2:])
            shapes.setdefault((small, large), []).append(index)
        flat = {index: torch.empty(matrices[index].numel, dtype=self._dtype, device=self._device) for index in own}
        for piece, values in pieces:
            flat[piece.matrix][piece.start : piece.start + piece.numel] = values
        results = {}
        for shape, members in shapes.items():
            batch = torch.empty(len(members), *shape, dtype=self._dtype, device=self._device)
            for slot, index in zip(batch, members, strict=True):
                whole = flat[index].view(matrices[index][2:])
                slot.copy_(whole.mT if whole.shape[0] > whole.shape[1] else whole)
            batch /= batch.float().norm(dim=(1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
            batch = orthogonalize(batch, self._settings.steps, self._settings.polynomial)
            for index, made in zip(members, batch, strict=True):
                tall = matrices[index].rows > matrices[index].columns
                results[index] = made.mT if tall else made
        return results

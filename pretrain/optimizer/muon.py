"""Muon for the matrices inside the blocks, AdamW for the rest, at every ZeRO stage.

An update is the momentum of the gradient, made orthogonal: of its singular value decomposition U S V' about U V'
remains, by a few Newton-Schulz iterations, which are matrix products (Jordan et al. 2024,
kellerjordan.github.io/posts/muon; Polar Express, arXiv:2505.16932). Momentum and weights are fp32 and lie where
DeepSpeed keeps them; DeepSpeed's own Muon is not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.schema.train import Optimizer
from pretrain.optimizer.muon_exchange import Matrix, Piece, Round, exchange, plan_rounds
from pretrain.parallel.fragments import places as find_places
from pretrain.parallel.fragments import units as find_units

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
# Numbers that a rank works on at a time: bounds the memory for copies, and keeps a batch of products large enough.
ROUND = 1 << 26


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
    """What an orthogonal update is multiplied by: see the recipe's `train.optimizer.muon.scale`."""
    return math.sqrt(max(1.0, rows / columns)) if kind == "spectral" else 0.2 * math.sqrt(max(rows, columns))


@dataclass(frozen=True)
class _Unit:
    """Buffers that DeepSpeed has updated in one call, on all ranks at once."""

    buffers: list[Tensor]
    matrices: list[Matrix]
    rounds: list[Round]


class Muon(torch.optim.AdamW):
    """Groups with `rule` "muon" are updated by Muon, the others by AdamW in its fused form."""

    def __init__(
        self, groups: list[dict[str, Any]], matrices: Sequence[Matrix], settings: Optimizer, dtype: torch.dtype
    ) -> None:
        """`matrices`: those in the parameters of Muon's groups; `dtype`: what they are made orthogonal in."""
        beta1, beta2 = settings.betas
        super().__init__(groups, lr=settings.lr, betas=(beta1, beta2), eps=settings.eps, fused=True)
        self._matrices, self._settings, self._dtype = matrices, settings.muon, dtype
        self._units: list[_Unit] = []

    def attach(
        self,
        engine: Any,
        stage: int,
        parameters: Iterable[tuple[str, nn.Parameter]],
        gather: Callable[[Any], list[Any]],
        device: torch.device,
    ) -> None:
        """Looks where a DeepSpeed engine of that stage keeps the matrices now; every rank must call it.

        `gather` gives every rank's value; `device` computes.
        """
        self._device = device
        units, places = find_units(engine, stage), find_places(engine, stage, parameters)
        parts: dict[str, list[int]] = {}
        for index, matrix in enumerate(self._matrices):
            parts.setdefault(matrix.parameter, []).append(index)
        where = {
            id(buffer): (unit, index) for unit, buffers in enumerate(units) for index, buffer in enumerate(buffers)
        }
        held: list[list[Piece]] = [[] for _ in units]
        for place in places:
            for index in parts.get(place.name, []):
                matrix = self._matrices[index]
                first = max(matrix.offset, place.offset)
                last = min(matrix.offset + matrix.numel, place.offset + place.numel)
                if first < last:
                    unit, buffer = where[id(place.buffer)]
                    at = place.start + first - place.offset
                    held[unit].append(Piece(index, first - matrix.offset, last - first, buffer, at))
        for number, everywhere in enumerate(zip(*gather(held), strict=True)):
            members = sorted({piece.matrix for pieces in everywhere for piece in pieces})
            if not members:
                continue
            renumbered = {index: position for position, index in enumerate(members)}
            pieces = [[piece._replace(matrix=renumbered[piece.matrix]) for piece in some] for some in everywhere]
            of_unit = [self._matrices[index] for index in members]
            self._units.append(_Unit(units[number], of_unit, plan_rounds(of_unit, pieces, dist.get_rank(), ROUND)))
            for tensor in units[number]:
                self.state[tensor] = {
                    "step": torch.zeros((), dtype=torch.float32, device=tensor.device),
                    "momentum_buffer": torch.zeros_like(tensor, requires_grad=False),
                }

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates what DeepSpeed has put into the groups and given a gradient."""
        groups = self.param_groups
        for group in groups:
            if group["rule"] == "muon":
                present = {id(buffer) for buffer in group["params"] if buffer.grad is not None}
                for unit in self._units:
                    if id(unit.buffers[0]) in present:
                        self._update(unit, group)
        self.param_groups = [group for group in groups if group["rule"] != "muon"]
        try:
            super().step()
        finally:
            self.param_groups = groups

    def _update(self, unit: _Unit, group: dict[str, Any]) -> None:
        updates = [self._momentum(buffer) for buffer in unit.buffers]
        weights = [buffer.view(-1) for buffer in unit.buffers]
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        scales = [group["lr"] * update_scale(self._settings.scale, *matrix[2:]) for matrix in unit.matrices]

        def read(piece: Piece) -> Tensor:
            return updates[piece.buffer][piece.at : piece.at + piece.numel]

        def apply(piece: Piece, values: Tensor) -> None:
            weight = weights[piece.buffer][piece.at : piece.at + piece.numel]
            weight.add_(values.to(weight.device), alpha=-scales[piece.matrix])

        for now in unit.rounds:
            received = exchange(now.send, now.receive, read, self._dtype, self._device) if now.gathers else []
            pieces = [(piece, read(piece)) for own in now.own.values() for piece in own] + received
            results = self._orthogonal(unit.matrices, list(now.own), pieces)

            def result(piece: Piece, results: dict[int, Tensor] = results) -> Tensor:
                return results[piece.matrix].reshape(-1)[piece.start : piece.start + piece.numel]

            for own in now.own.values():
                for piece in own:
                    apply(piece, result(piece))
            if now.travels:
                for piece, values in exchange(now.give_back, now.get_back, result, self._dtype, self._device):
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
        """The orthogonal matrices (rows, columns) of the numbers in `own`, put together from their pieces."""
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

"""Checks before the first step that fast code computes what plain code computes.

One micro-batch goes through the model as training runs it (compiled, attention by products, fp8, the loss in chunks)
and through plain kernels (`pretrain.model.plain_kernels`), forward and backward. The loss, the norm of the gradient and
the gradient of every parameter must agree within what the precision's rounding explains. The gradients themselves are
never held twice: of each parameter's a *digest* is kept, 64 sums over random parts with random signs (a count sketch:
Charikar et al. 2002). It is linear, so plain code may go through the micro-batch a few rows at a time, in less memory
than training needs; and the norm of the difference of two digests estimates that of the difference of the gradients, to
9%.

Weights, optimizer, random numbers and the order of the data are afterwards what they were.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.batches.source import Batch
from pretrain.engine.engine import Engine
from pretrain.model.float8 import float8_layers
from pretrain.model.plain_kernels import plain_kernels, without_dropout
from pretrain.sizes.limits import chunk_positions

BUCKETS = 64
_PIECES = 4  # plain code goes through the micro-batch in so many
_FP16_SCALE = 1024.0  # a gradient of the mean loss has numbers too small for fp16
_FILL = 0.02  # deviation of what stands in for weights that are all zero


@dataclass(frozen=True)
class Tolerance:
    """Largest relative differences that rounding explains."""

    loss: float
    gradient: float


# About ten times the largest that were measured (docs/lab-notes.md, "Compiled against plain").
TOLERANCES = {
    "fp32": Tolerance(1e-5, 1e-3),
    "bf16": Tolerance(2e-3, 0.1),
    "fp16": Tolerance(5e-4, 0.05),
    "fp8": Tolerance(2e-2, 0.5),
}
# A parameter whose gradient is next to nothing (the bias of keys) consists of rounding: differences count against its
# own norm and this share of the norm that it would have if all numbers of the gradient were as large as on average.
_FLOOR = 0.1


@dataclass(frozen=True)
class Digest:
    """The result of one way of computing on this rank: nats, and a digest of each parameter's gradient (P, BUCKETS)."""

    nats: float
    gradients: Tensor

    @property
    def norms(self) -> Tensor:
        """(P,) estimates of the norms of the gradients."""
        norms: Tensor = torch.linalg.vector_norm(self.gradients, dim=1)
        return norms

    @property
    def is_finite(self) -> bool:
        """Whether neither the loss nor a gradient holds NaN or infinity."""
        return math.isfinite(self.nats) and bool(self.gradients.isfinite().all())

    @property
    def has_gradient(self) -> bool:
        """Whether any gradient differs from zero."""
        return bool(self.gradients.any())


@dataclass(frozen=True)
class Differences:
    """Relative differences between two digests, the largest over ranks."""

    loss: float
    norm: float
    gradients: dict[str, float]  # by the names of parameters
    problem: str = ""  # why there is nothing to compare

    def worst(self) -> tuple[str, float]:
        """The parameter whose gradient differs most."""
        return max(self.gradients.items(), key=lambda item: item[1], default=("none", 0.0))

    def failing(self, allowed: Tolerance) -> list[str]:
        """Names what differs by more than is allowed, the largest differences first."""
        names = [name for name, value in sorted(self.gradients.items(), key=lambda item: -item[1])]
        found = [f"gradient of {name}" for name in names if not self.gradients[name] <= allowed.gradient]
        found += ["gradient norm"] * (not self.norm <= allowed.gradient) + ["loss"] * (not self.loss <= allowed.loss)
        return found + [self.problem] * bool(self.problem)


@dataclass(frozen=True)
class Check:
    """The outcome of the check; `compiled` says how training goes on."""

    compiled: bool
    text: str  # one line
    decided: bool  # there were numbers to compare
    values: dict[str, float] = field(default_factory=dict)  # for metrics.jsonl


class WrongKernels(ValueError):
    """Fast code and plain code disagree, and the recipe does not allow training without fast code."""


def fast_paths(engine: Engine, positions: int, chunk: int | None) -> list[str]:
    """The fast paths that training on micro-batches of `positions` tokens takes."""
    model = engine.module.model
    found = ["compiled code"] if engine.compiled else []
    found += ["attention by products"] if engine.compiled and model.attends_by_products(engine.device) else []
    found += ["fp8 products"] if float8_layers(model) else []
    found += ["the loss in chunks"] if positions > chunk_positions(model.vocab_size, chunk) else []
    return found


def check_kernels(engine: Engine, batch: Batch, setting: Any, chunk: int | None) -> Check:
    """Compares fast code with plain code on a micro-batch; every rank must call it, and all decide the same.

    Args:
        batch: a micro-batch on the engine's device.
        setting: `train.compile`. Where compiled code fails, `auto` goes on without it, and says so on standard error.
        chunk: `train.loss_chunk`.

    Raises:
        WrongKernels: on every rank, naming what differs and what helps.
    """
    paths = fast_paths(engine, batch.tokens.numel(), chunk)
    if not paths:
        return Check(False, "plain code alone: neither compiled code nor fp8 nor a loss in chunks", True)
    began = time.monotonic()
    batch, allowed = _weighted(batch), TOLERANCES[engine.precision]
    with _as_before(engine):
        plain = _plain_digest(engine, batch)
        whole = time.monotonic()
        found = _compare(engine, batch, plain)
        seconds = {"check/seconds": whole - began, "check/first_pass_seconds": time.monotonic() - whole}
        if not all(engine.gather(plain.is_finite)):
            text = f"{_listed(paths)}: not compared: plain code gives NaN or infinite values too"
            return Check(engine.compiled, text, False, seconds)
        failing = found.failing(allowed)
        if not failing and not any(engine.gather(plain.has_gradient)):  # zeros equal zeros, whatever was computed
            text = f"{_listed(paths)}: not compared, as this micro-batch has no gradient"
            return Check(engine.compiled, text, False, seconds)
        if not failing:
            text = _passed(paths, found, allowed, seconds)
            return Check(engine.compiled, text, True, _values(found, engine) | seconds)
        if not engine.compiled:
            raise WrongKernels(_refusal(paths, found, failing, allowed, compiled=False))
        if setting != "auto":
            raise WrongKernels(_refusal(paths, found, failing, allowed, compiled=True))
        engine.uncompile()
        rest = fast_paths(engine, batch.tokens.numel(), chunk)
        again = _compare(engine, batch, plain) if rest else None
        if again is not None and (left := again.failing(allowed)):
            raise WrongKernels(_refusal(rest, again, left, allowed, compiled=False))
    return Check(False, _fallback(found, failing, allowed), True, _values(found, engine) | seconds)


# ------------------------------------------------------------------------------------------------------------- digests
def sketch(gradient: Tensor | None, size: int, number: int) -> Tensor:
    """(BUCKETS,) float64 of the gradient of parameter `number`: the same random parts and signs each time."""
    if gradient is None:
        return torch.zeros(BUCKETS, dtype=torch.float64)
    generator = torch.Generator(gradient.device).manual_seed(number)
    signs = torch.randint(0, 2, (size,), generator=generator, device=gradient.device, dtype=torch.int8)
    signed = gradient.detach().reshape(-1).float() * (2 * signs - 1)
    padded = F.pad(signed, (0, -size % BUCKETS)).view(-1, BUCKETS)
    return padded.sum(dim=0, dtype=torch.float64).cpu()


def _digest(engine: Engine, batch: Batch, call: Callable[..., Tensor], scale: float) -> Digest:
    parameters = [parameter for _, parameter in engine.state.parameters()]
    with engine.autocast():
        nats = call(*batch.inputs, **batch.columns).reshape(-1)[0]
    # Past DeepSpeed's hooks, which would start to reduce and add up.
    gradients = torch.autograd.grad(nats * scale, parameters, allow_unused=True)
    rows = [sketch(g, g.numel() if g is not None else 0, number) for number, g in enumerate(gradients)]
    return Digest(float(nats.detach()), torch.stack(rows))


def _weighted(batch: Batch) -> Batch:
    """Sets all weights to one where all are zero: a micro-batch of padding has no gradient to compare."""
    return batch if batch.weights.any() else replace(batch, weights=torch.ones_like(batch.weights))


def _scale(engine: Engine, batch: Batch) -> float:
    """The factor that makes a mean of the micro-batch's sum."""
    return (_FP16_SCALE if engine.precision == "fp16" else 1.0) / max(float(batch.weights.sum()), 1.0)


def _plain_digest(engine: Engine, batch: Batch) -> Digest:
    unit, scale = engine.module.unit_rows, _scale(engine, batch)
    rows = max(1, len(batch.tokens) // unit // _PIECES) * unit
    pieces = [batch.rows(start, start + rows) for start in range(0, len(batch.tokens), rows)]
    with plain_kernels(engine.module.model):
        # `forward` and not the module itself, which may be compiled; at ZeRO-3 the hooks are on the modules inside.
        found = [_digest(engine, piece, engine.module.forward, scale) for piece in pieces]
    return Digest(sum(part.nats for part in found), torch.stack([part.gradients for part in found]).sum(dim=0))


def _compare(engine: Engine, batch: Batch, plain: Digest) -> Differences:
    """The differences of what training would compute, the largest over ranks."""
    names = [name for name, _ in engine.state.parameters()]
    try:
        fast = _digest(engine, batch, engine.module, _scale(engine, batch))
        own = differences(fast, plain, names, [math.prod(shape) for shape in engine.state.shapes().values()])
    except RuntimeError as error:
        # Only where code was compiled are these modules imported already; they are slow to import, and on being so
        # torch chooses where its cache lies.
        from torch._dynamo.exc import TorchDynamoException  # of which inductor's errors are

        if not isinstance(error, TorchDynamoException):
            raise
        own = Differences(0.0, 0.0, {}, f"compilation ({str(error).strip().splitlines()[0][:200]})")
    parts = engine.gather(own)
    return Differences(
        _largest(part.loss for part in parts),
        _largest(part.norm for part in parts),
        {name: _largest(part.gradients.get(name, 0.0) for part in parts) for name in names},
        next((part.problem for part in parts if part.problem), ""),
    )


def differences(fast: Digest, plain: Digest, names: list[str], sizes: list[int]) -> Differences:
    """Compares the digests of one rank; infinite where the fast code gives NaN or infinity."""
    norms, counts = plain.norms, torch.tensor(sizes, dtype=torch.float64)
    total = norms.norm()
    expected = norms + _FLOOR * total * (counts / counts.sum()).sqrt()
    apart = (fast.gradients - plain.gradients).norm(dim=1) / expected.clamp_min(1e-30)
    return Differences(
        _number(abs(fast.nats - plain.nats) / max(abs(plain.nats), 1e-30)),
        _number(float(abs(fast.norms.norm() - total) / total.clamp_min(1e-30))),
        {name: _number(value) for name, value in zip(names, apart.tolist(), strict=True)},
    )


def _number(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _largest(values: Iterator[float] | Any) -> float:
    return max(values, default=0.0)


@contextmanager
def _as_before(engine: Engine) -> Iterator[None]:
    """Sets training mode without dropout, and fills weights that are all zero; restores everything at the end.

    Behind a matrix of zeros, as `model.zero_init` makes them, all gradients are zero, right or wrong.
    """
    model, filled = engine.module.model, []
    training = engine.module.training
    devices = [engine.device] if engine.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), without_dropout(model):
        engine.module.train()
        for number, (_, parameter) in enumerate(engine.state.parameters()):
            with engine.state.gathered(parameter), torch.no_grad():
                if not parameter.any():
                    generator = torch.Generator(parameter.device).manual_seed(number)
                    parameter.normal_(std=_FILL, generator=generator)
                    filled.append(parameter)
        try:
            yield
        finally:
            for parameter in filled:
                with engine.state.gathered(parameter), torch.no_grad():
                    parameter.zero_()
            engine.module.train(training)


# --------------------------------------------------------------------------------------------------------------- words
def _values(found: Differences, engine: Engine) -> dict[str, float]:
    """The values for metrics.jsonl; leaves out what is not finite, because JSON has no infinity."""
    values = {"check/loss": found.loss, "check/grad_norm": found.norm, "check/gradients": found.worst()[1]}
    return {name: value for name, value in values.items() if math.isfinite(value)} | {
        "check/compiled": float(engine.compiled)
    }


def _listed(paths: list[str]) -> str:
    return " and ".join([", ".join(paths[:-1]), paths[-1]] if len(paths) > 1 else paths)


def _verb(paths: list[str], plural: str) -> str:
    return plural if len(paths) > 1 or paths == ["fp8 products"] else plural + "s"


def _measured(found: Differences, allowed: Tolerance) -> str:
    name, value = found.worst()
    return (
        f"relative differences: loss {found.loss:.1e} (allowed {allowed.loss:g}), gradient norm {found.norm:.1e}, "
        f"gradient of {name} {value:.1e} (allowed {allowed.gradient:g})"
    )


def _passed(paths: list[str], found: Differences, allowed: Tolerance, seconds: dict[str, float]) -> str:
    took = f"{seconds['check/seconds']:.1f} s besides the first pass, {seconds['check/first_pass_seconds']:.1f} s"
    return f"{_listed(paths)} {_verb(paths, 'agree')} with plain code ({took}); {_measured(found, allowed)}"


def _named(failing: list[str]) -> str:
    shown = ", ".join(failing[:4])
    return shown + (f" and {len(failing) - 4} more" if len(failing) > 4 else "")


def _fallback(found: Differences, failing: list[str], allowed: Tolerance) -> str:
    return (
        f"warning: compiled code computes something else than plain code: {_named(failing)}; "
        f"{_measured(found, allowed)}. Training goes on uncompiled. {_REMEDY}"
    )


_REMEDY = (
    "Another compiler (CXX=clang++, a newer g++) or narrower instructions (ATEN_CPU_CAPABILITY=avx2) may compile "
    "rightly; train.compile=false does not compile"
)


def _refusal(paths: list[str], found: Differences, failing: list[str], allowed: Tolerance, compiled: bool) -> str:
    ways = [_REMEDY + "; auto goes on without"] if compiled else []
    if "fp8 products" in paths and not compiled:
        ways.append("use train.precision=bf16")
    if "the loss in chunks" in paths and not compiled:
        ways.append("set train.loss_chunk to no less than the tokens of a micro-batch")
    return (
        f"{_listed(paths)} {_verb(paths, 'compute')} something else than plain code: {_named(failing)}; "
        f"{_measured(found, allowed)}. Nothing was trained. {'; or '.join(ways)}"
    )

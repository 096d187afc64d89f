"""Fast code is compared with plain code before it is trusted: planted faults are found, named, and left behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.schema.model import Model
from pretrain.batches.source import Batch
from pretrain.model.cross_entropy import _Chunked
from pretrain.model.transformer import Transformer
from pretrain.numerics import kernel_check
from pretrain.numerics.kernel_check import (
    BUCKETS,
    TOLERANCES,
    Check,
    Differences,
    Digest,
    WrongKernels,
    check_kernels,
    differences,
    sketch,
)
from pretrain.objectives.language_modelling import LanguageModelling

ROWS, LENGTH, VOCAB = 4, 16, 64


class StandIn:
    """What the check needs of an engine, in this process and without DeepSpeed; `call` is the compiled module."""

    def __init__(self, chunk: int | None = None, precision: str = "fp32", **model: Any) -> None:
        settings = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "context_length": LENGTH, **model}
        torch.manual_seed(0)
        self.module = LanguageModelling(Transformer(Model(**settings), VOCAB), chunk)
        self.chunk, self.precision, self.device, self.compiled = chunk, precision, torch.device("cpu"), False
        self.ranks = SimpleNamespace(rank=0, count=1)
        self.state = self  # of which only weights are asked for
        self.gather: Callable[[Any], list[Any]] = lambda value: [value]

    def compile(self, call: Callable[..., Tensor]) -> None:
        self.compiled, self.module._compiled_call_impl = True, call

    def uncompile(self) -> None:
        self.compiled, self.module._compiled_call_impl = False, None

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return self.module.model.named_parameters()

    def shapes(self) -> dict[str, list[int]]:
        return {name: list(value.shape) for name, value in self.parameters()}

    def gathered(self, _: torch.nn.Parameter) -> Any:
        return nullcontext()

    def autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision != "fp32")


def batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(0, VOCAB, (ROWS, LENGTH + 1), generator=generator)
    return Batch(text[:, :-1], text[:, 1:], torch.ones(ROWS, LENGTH), target_bytes=0, fresh=False)


def check(engine: StandIn, setting: Any = "auto") -> Check:
    return check_kernels(engine, batch(), setting, engine.chunk)  # type: ignore[arg-type]


def wrong_gradient(engine: StandIn, name: str, change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """The module as compiled wrongly: its gradient of one parameter is changed, its loss is right."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return change(gradient)

    parameter = dict(engine.module.named_parameters())[name]

    def call(*inputs: Tensor) -> Tensor:
        replaced = {name: Wrong.apply(parameter)}
        return torch.func.functional_call(
            Uncompiled(engine.module), {f"module.{k}": v for k, v in replaced.items()}, inputs
        )

    return call


class Uncompiled(torch.nn.Module):
    """Calls a module past its compiled form."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        out: Tensor = self.module.forward(*inputs)
        return out


def transposed(gradient: Tensor) -> Tensor:
    """Right numbers in wrong places: norm and sum stay what they were."""
    return gradient.flatten().flip(0).view_as(gradient)


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "no number": lambda g: g * math.nan,
    "infinite": lambda g: g / 0,
    "finite garbage": lambda g: torch.randn_like(g) * g.std(),
    "wrong places": transposed,
    "one row lost": lambda g: torch.cat([g[:1] * 0, g[1:]]),
    "a percent too large": lambda g: g * 1.01,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_gradient_is_found_and_left_behind(fault: str, capfd: pytest.CaptureFixture[str]) -> None:
    engine, name = StandIn(), "model.blocks.1.mlp.down.weight"
    engine.compile(wrong_gradient(engine, name, FAULTS[fault]))
    found = check(engine)
    assert not found.compiled and not engine.compiled and engine.module._compiled_call_impl is None
    assert "warning: compiled code computes something else" in found.text
    assert "gradient of blocks.1.mlp.down.weight" in found.text and "goes on uncompiled" in found.text
    assert all(math.isfinite(value) for value in found.values.values()), "JSON has no infinity"


def test_where_compiling_was_asked_for_it_is_refused() -> None:
    engine = StandIn()
    engine.compile(wrong_gradient(engine, "model.blocks.0.attention.qkv.weight", FAULTS["finite garbage"]))
    with pytest.raises(WrongKernels, match=r"gradient of blocks\.0\.attention\.qkv\.weight.*Nothing was trained.*CXX="):
        check(engine, setting=True)
    assert engine.compiled


def test_a_wrong_loss_alone_is_found() -> None:
    engine = StandIn()
    engine.compile(lambda *inputs: Uncompiled(engine.module)(*inputs) + 1.0)
    assert "loss" in check(engine).text and not engine.compiled


def test_code_that_cannot_be_compiled_is_left_behind() -> None:
    engine = StandIn()

    def fails(*_: Any) -> Any:
        raise torch._dynamo.exc.BackendCompilerFailed(fails, RuntimeError("g++ was killed"), None)

    engine.compile(fails)
    found = check(engine)
    assert "compilation" in found.text and not engine.compiled
    engine.compile(fails)
    with pytest.raises(WrongKernels, match="compilation"):
        check(engine, setting=True)


@pytest.mark.slow
def test_right_code_stays_and_changes_nothing() -> None:
    engine = StandIn(dropout=0.1, zero_init=True)
    engine.module.eval()
    engine.compile(torch.compile(engine.module._call_impl, backend="aot_eager"))
    before = {name: value.clone() for name, value in engine.state.parameters()}
    random = torch.get_rng_state()
    found = check(engine, setting=True)
    assert found.compiled and engine.compiled and "agrees with plain code" in found.text
    assert found.values["check/gradients"] < 1e-4 and found.values["check/loss"] < 1e-6
    assert all(torch.equal(before[name], value) for name, value in engine.state.parameters())
    assert all(value.grad is None for _, value in engine.state.parameters())
    assert torch.equal(random, torch.get_rng_state()) and not engine.module.training
    assert engine.module.model.config.dropout == 0.1 and engine.module.model.blocks[0].dropout == 0.1


def test_zeros_hide_nothing() -> None:
    """Behind matrices of zeros all gradients are zero, right or wrong."""
    engine = StandIn(zero_init=True)
    engine.compile(wrong_gradient(engine, "model.blocks.0.mlp.up.weight", transposed))
    assert "gradient of blocks.0.mlp.up.weight" in check(engine).text
    assert not engine.module.model.blocks[0].mlp.down.weight.any()


def test_the_loss_in_chunks_is_compared_with_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = StandIn(chunk=24)
    found = check(engine)
    assert "the loss in chunks agrees with plain code" in found.text and not found.compiled
    right = _Chunked.backward
    monkeypatch.setattr(_Chunked, "backward", staticmethod(lambda ctx, g: right(ctx, g * 1.1)))
    with pytest.raises(WrongKernels, match=r"the loss in chunks computes something else.*train\.loss_chunk"):
        check(engine)


def test_after_the_compiled_code_what_remains_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = StandIn(chunk=24)
    engine.compile(lambda *inputs: Uncompiled(engine.module)(*inputs) * math.nan)
    assert "goes on uncompiled" in check(engine).text
    right = _Chunked.backward
    monkeypatch.setattr(_Chunked, "backward", staticmethod(lambda ctx, g: right(ctx, g * 1.1)))
    engine.compile(lambda *inputs: Uncompiled(engine.module)(*inputs) * math.nan)
    with pytest.raises(WrongKernels, match="the loss in chunks computes"):
        check(engine)


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_fp8_is_compared_with_what_it_rounds(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    float8 = pytest.importorskip("torchao.float8.float8_linear", exc_type=ImportError)
    from pretrain.model.float8 import use_float8

    engine = StandIn(hidden_size=64)
    engine.precision = "fp32"  # no autocast: torchao's emulation takes the weights' dtype
    use_float8(engine.module.model, emulate=True)
    monkeypatch.setitem(TOLERANCES, "fp32", TOLERANCES[precision])
    if precision == "bf16":  # tighter than what fp8 rounds: so it is really fp8 that was compared
        monkeypatch.setitem(TOLERANCES, "fp32", kernel_check.Tolerance(1e-4, 1e-2))
        with pytest.raises(WrongKernels, match=r"fp8 products compute.*train\.precision=bf16"):
            check(engine)
        return
    assert "fp8 products agree " in check(engine).text
    right = float8.Float8Linear.forward
    monkeypatch.setattr(float8.Float8Linear, "forward", lambda self, x: right(self, x.flip(-1)))
    with pytest.raises(WrongKernels):
        check(engine)


def test_nothing_fast_is_nothing_to_compare() -> None:
    found = check(StandIn())
    assert found.text.startswith("plain code alone") and found.decided and not found.values


def test_a_batch_that_gives_no_numbers_accuses_no_kernel() -> None:
    engine = StandIn()
    with torch.no_grad():
        engine.module.model.norm.weight.fill_(math.nan)
    call = Uncompiled(engine.module)
    engine.compile(lambda *inputs: call(*inputs))
    found = check(engine, setting=True)
    assert not found.decided and found.compiled and "not compared" in found.text


def test_one_wrong_rank_decides_for_all() -> None:
    engine = StandIn()
    call = Uncompiled(engine.module)
    engine.compile(lambda *inputs: call(*inputs))
    other = Differences(0.0, 0.0, {"embed.weight": math.inf})
    engine.gather = lambda value: [value, other if isinstance(value, Differences) else value]
    assert "gradient of embed.weight" in check(engine).text and not engine.compiled


# ------------------------------------------------------------------------------------------------------------- digests
def test_a_digest_estimates_the_norm_of_a_difference() -> None:
    generator = torch.Generator().manual_seed(1)
    errors = []
    for number in range(20):
        one, other = torch.randn(2, 5000, generator=generator)
        apart = (sketch(one, 5000, number) - sketch(other, 5000, number)).norm()
        errors.append(float(apart / (one - other).norm()) - 1)
    assert max(map(abs, errors)) < 0.35 and abs(sum(errors) / 20) < 0.06


def test_a_digest_is_linear_and_takes_any_size() -> None:
    for size in (1, BUCKETS - 1, BUCKETS, 1000):
        one, other = torch.randn(2, size)
        both = sketch(one, size, 3) + sketch(other, size, 3)
        torch.testing.assert_close(both, sketch(one + other, size, 3), rtol=1e-4, atol=1e-4)
    assert not sketch(None, 0, 0).any()


def test_a_gradient_of_rounding_alone_accuses_nothing() -> None:
    large, tiny = torch.full((1, BUCKETS), 1.0), torch.full((1, BUCKETS), 1e-9)
    plain = Digest(1.0, torch.cat([large, tiny]).double())
    fast = Digest(1.0, torch.cat([large, -tiny]).double())
    found = differences(fast, plain, ["a", "b"], [64, 64])
    assert found.gradients["b"] < 1e-6 and not found.failing(TOLERANCES["fp32"])
    assert differences(Digest(math.nan, fast.gradients), plain, ["a", "b"], [64, 64]).loss == math.inf


def test_a_micro_batch_without_weight_hides_no_fault() -> None:
    """All of a micro-batch may be padding: then both ways give zeros, right or wrong."""
    engine = StandIn()
    engine.compile(wrong_gradient(engine, "model.blocks.0.mlp.up.weight", lambda gradient: 2 * gradient))
    found = check_kernels(engine, replace(batch(), weights=torch.zeros(ROWS, LENGTH)), "auto", None)  # type: ignore[arg-type]
    assert not found.compiled and "gradient of blocks.0.mlp.up.weight" in found.text


def test_zeros_are_compared_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = StandIn()
    engine.compile(engine.module.forward)
    forward = engine.module.forward
    engine.module.forward = lambda *inputs: 0 * forward(*inputs)  # type: ignore[method-assign]
    engine.compile(engine.module.forward)
    found = check(engine)
    assert not found.decided and "has no gradient" in found.text


class Pairs(LanguageModelling):
    """A loss over pairs of rows, with a column and a statistic."""

    stat_names, unit_rows = ("difference",), 2

    def loss(
        self, tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None, **columns: Tensor
    ) -> Tensor:
        rows = (self.model.log_probs(tokens, targets, positions, self.chunk) * weights).sum(dim=1)
        difference = rows[::2] - rows[1::2] - columns["margin"][::2]
        return torch.stack([-torch.nn.functional.logsigmoid(difference).sum(), difference.detach().sum()])


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_losses_of_pairs_are_compared_with_their_columns(factor: float) -> None:
    engine = StandIn(chunk=8)
    engine.module = Pairs(engine.module.model, 8)
    lengths = (LENGTH, 9, 12, 5)
    weights = (torch.arange(LENGTH) < torch.tensor(lengths)[:, None]).float()
    pairs = replace(batch(), weights=weights, columns={"margin": torch.rand(ROWS)}, lengths=lengths)
    engine.compile(lambda *inputs, **columns: engine.module.forward(*inputs, **columns) * factor)
    found = check_kernels(engine, pairs, "auto", 8)  # type: ignore[arg-type]
    assert found.decided and found.compiled == (factor == 1), found.text

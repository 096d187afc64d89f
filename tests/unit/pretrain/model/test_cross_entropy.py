"""Projection and cross-entropy in chunks: the same loss and gradients as torch's, without the whole of the logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.model.cross_entropy import linear_cross_entropy
from pretrain.sizes.limits import chunk_positions

POSITIONS, WIDTH, VOCAB = 37, 16, 50


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(VOCAB, (POSITIONS,), generator=generator)
    weights = torch.rand(POSITIONS, generator=generator) * (torch.arange(POSITIONS) % 5 > 0)
    return hidden, weight, targets, weights


def reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, cap: float | None
) -> tuple[Tensor, ...]:
    """In fp64, with all logits."""
    hidden, weight = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    logits = hidden @ weight.T
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    loss = (F.cross_entropy(logits, targets, reduction="none") * weights).sum()
    return loss.detach(), *torch.autograd.grad(loss * 0.25, (hidden, weight))


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("chunk", [1, 8, 36, 37, 100])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_equals_the_whole(dtype: torch.dtype, tolerance: float, chunk: int, cap: float | None) -> None:
    hidden, weight, targets, weights = inputs(dtype)
    loss = linear_cross_entropy(hidden, weight, targets, weights, chunk, cap)
    grads = torch.autograd.grad(loss * 0.25, (hidden, weight))
    assert loss.dtype == torch.float32
    assert [grad.dtype for grad in grads] == [dtype, dtype]
    for ours, theirs in zip((loss, *grads), reference(hidden, weight, targets, weights, cap), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


def test_gradients_are_those_of_finite_differences() -> None:
    hidden, weight, targets, weights = inputs(torch.float32)
    double = [value.detach().double().requires_grad_() for value in (hidden, weight)]
    whole = linear_cross_entropy(*double, targets, weights, 100)
    chunked = linear_cross_entropy(*double, targets, weights, 8)
    for ours, theirs in zip(torch.autograd.grad(chunked, double), torch.autograd.grad(whole, double), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_autocast_and_scoring_give_the_same() -> None:
    hidden, weight, targets, weights = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        chunked = linear_cross_entropy(hidden, weight, targets, weights, 8)
        whole = linear_cross_entropy(hidden, weight, targets, weights, 100)
        with torch.no_grad():
            scored = linear_cross_entropy(hidden, weight, targets, weights, 8)
    grads = torch.autograd.grad(chunked, (hidden, weight))
    assert [grad.dtype for grad in grads] == [torch.float32, torch.float32]
    torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(chunked.detach(), scored, rtol=1e-5, atol=1e-4)


def test_holds_a_chunk_of_logits_and_no_more() -> None:
    positions, vocab = 512, 512
    hidden, weight = torch.randn(positions, 8, requires_grad=True), torch.randn(vocab, 8, requires_grad=True)
    targets, weights = torch.randint(vocab, (positions,)), torch.ones(positions)

    def saved(chunk: int) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            linear_cross_entropy(hidden, weight, targets, weights, chunk)
        return max(sizes)

    assert saved(32) == positions * 8
    assert saved(positions) >= positions * vocab


def test_chunks_by_themselves_hold_64_million_logits() -> None:
    assert chunk_positions(65_536, None) == 1024
    assert chunk_positions(10**7, None) == 256
    assert chunk_positions(65_536, 17) == 17


@pytest.mark.slow
def test_compiles_in_one_graph() -> None:
    hidden, weight, targets, weights = inputs(torch.float32)
    compiled = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(
        torch.autograd.grad(compiled(hidden, weight, targets, weights, 8), (hidden, weight)),
        torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, weights, 100), (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

"""Log-probabilities of targets and their gradient, in chunks and at once, against log_softmax in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from configs.schema.model import Model
from pretrain.model.log_probs import linear_log_probs
from pretrain.model.plain_kernels import plain_kernels
from pretrain.model.transformer import Transformer

N, D, V = 23, 12, 50


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, targets, and the coefficients of a linear form of log-probabilities."""
    generator = torch.Generator().manual_seed(1)
    hidden, weight, form = (torch.randn(shape, generator=generator) for shape in ((N, D), (V, D), (N,)))
    return hidden, weight, torch.randint(0, V, (N,), generator=generator), form


def exact(cap: float | None, temperature: float) -> list[Tensor]:
    """Log-probabilities, entropy, and the gradients of the form, in fp64."""
    hidden, weight, targets, form = inputs()
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logits = hidden @ weight.T
    logits = (logits if cap is None else cap * torch.tanh(logits / cap)) / temperature
    log_p = F.log_softmax(logits, dim=-1)
    found = log_p[torch.arange(N), targets]
    gradients = torch.autograd.grad((found * form).sum(), (hidden, weight))
    return [found.detach(), -(log_p.exp() * log_p).sum(-1).detach(), *gradients]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("chunk", [N, 8, 1])
@pytest.mark.parametrize(("cap", "temperature"), [(None, 1.0), (3.0, 1.0), (None, 0.6), (3.0, 1.4)])
def test_values_and_gradients(cap: float | None, temperature: float, chunk: int, plain: bool) -> None:
    hidden, weight, targets, form = inputs()
    hidden.requires_grad_()
    weight.requires_grad_()
    with plain_kernels(torch.nn.Identity()) if plain else torch.enable_grad():
        log_p, entropy = linear_log_probs(hidden, weight, targets, chunk, cap, temperature)
        gradients = torch.autograd.grad((log_p * form).sum(), (hidden, weight))
    found = [log_p.detach(), entropy, *gradients]
    for one, wanted, tolerance in zip(found, exact(cap, temperature), (1e-5, 1e-5, 1e-5, 2e-5), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), wanted, atol=tolerance, rtol=1e-5)
    assert not entropy.requires_grad


def test_impossible_tokens_leave_the_entropy_finite() -> None:
    hidden, weight = torch.eye(2), torch.tensor([[1e6, 0.0], [0.0, 0.0], [0.0, 1e6]])
    _, entropy = linear_log_probs(hidden, weight, torch.tensor([0, 2]), 2)
    assert entropy.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("settings", [{}, {"logit_softcap": 5.0}, {"tied_embeddings": False}])
def test_the_model_s_are_those_of_its_logits_and_sum_to_its_loss(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Transformer(Model(num_layers=2, hidden_size=16, num_heads=2, context_length=12, **settings), V)
    text = torch.randint(0, V, (3, 13))
    tokens, targets, weights = text[:, :-1], text[:, 1:], torch.rand(3, 12)
    with torch.no_grad():
        expected = F.log_softmax(model(tokens).float() / 0.7, dim=-1).gather(2, targets[..., None]).squeeze(-1)
        torch.testing.assert_close(model.log_probs(tokens, targets, chunk=5, temperature=0.7), expected)
    loss = -(model.log_probs(tokens, targets, chunk=5) * weights).sum()
    torch.testing.assert_close(loss, model.loss(tokens, targets, weights))
    ours = torch.autograd.grad(loss, list(model.parameters()))
    for one, other in zip(
        ours, torch.autograd.grad(model.loss(tokens, targets, weights), list(model.parameters())), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)

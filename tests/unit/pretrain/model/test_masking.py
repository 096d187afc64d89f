"""Document masking: a window of several documents computes what the documents compute one by one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention

import pretrain.model.transformer
from configs.schema.model import Model
from pretrain.batches.source import document_positions
from pretrain.model.attention import product_attention
from pretrain.model.masking import attend, document_mask
from pretrain.model.transformer import Transformer
from pretrain.objectives.language_modelling import LanguageModelling

SHAPE: dict[str, Any] = {"num_layers": 2, "hidden_size": 64, "num_heads": 4, "context_length": 24, "init_std": 0.2}
SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": {"family": "gpt2"},
    "llama": {"family": "llama", "num_kv_heads": 2},
    "qwen3": {"family": "llama", "num_kv_heads": 1, "qk_norm": True, "tied_embeddings": True, "head_dim": 16},
    "both ways": {"family": "llama", "num_kv_heads": 2, "causal": False},
}
VOCAB, EOD = 40, 0
# Where end-of-document tokens stand in the rows of a window of 24: first, last, two in a row, none.
ENDS = [[5, 6, 17], [0, 23], []]


def window() -> tuple[Tensor, Tensor]:
    """Tokens and targets, each (3, 24)."""
    text = torch.randint(1, VOCAB, (3, 25), generator=torch.Generator().manual_seed(2))
    for row, ends in enumerate(ENDS):
        text[row, ends] = EOD
    return text[:, :-1], text[:, 1:]


def loss_and_gradients(module: LanguageModelling, pieces: list[tuple[Tensor, ...]]) -> tuple[float, list[Tensor]]:
    """Of the sum over all pieces."""
    module.zero_grad()
    total = sum(module(*piece) for piece in pieces)
    assert isinstance(total, Tensor)
    total.backward()
    return float(total.detach()), [p.grad.clone() for p in module.parameters() if p.grad is not None]


def make(name: str, **changes: Any) -> LanguageModelling:
    torch.manual_seed(0)
    return LanguageModelling(Transformer(Model(**SHAPE, **SETTINGS[name], **changes), VOCAB))


def one_by_one(tokens: Tensor, targets: Tensor, weights: Tensor) -> list[tuple[Tensor, ...]]:
    """The documents of a window as rows of their own: each begins with the end-of-document token before it."""
    pieces = []
    for row, ends in enumerate(ENDS):
        borders = sorted({0, *ends, tokens.shape[1]})
        for start, stop in pairwise(borders):
            pieces.append(tuple(part[row : row + 1, start:stop] for part in (tokens, targets, weights)))
    return pieces


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((name, way) for name in SETTINGS for way in ("numbers", "flex")),
        *(("qwen3", way) for way in ("checkpointed", "checkpointed flex")),
        *(pytest.param("qwen3", way, marks=pytest.mark.slow) for way in ("compiled", "compiled flex")),
    ],
)
def test_a_window_computes_what_its_documents_compute_alone(
    name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain.model.transformer, "prefers_flex", lambda config, device: "flex" in way)
    # The eager form has a backward pass on CPUs too; torch refuses it there because the compiled one has none.
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    module = make(name)
    tokens, targets = window()
    weights = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(3))
    expected, gradients = loss_and_gradients(module, one_by_one(tokens, targets, weights))
    positions = document_positions(tokens.numpy() == EOD)
    module.model.activation_checkpointing = "full" if "checkpointed" in way else "none"
    run: Any = torch.compile(module, backend="aot_eager", fullgraph=True) if "compiled" in way else module
    found, masked = loss_and_gradients(run, [(tokens, targets, weights, positions)])
    assert found == pytest.approx(expected, rel=1e-6)
    assert len(masked) == len(list(module.parameters()))
    for one, other in zip(masked, gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=1e-5)
    unmasked, _ = loss_and_gradients(module, [(tokens, targets, weights)])
    assert abs(unmasked - expected) > 1e-3 * expected, "the mask changes something"


@pytest.mark.parametrize("causal", [True, False])
def test_attention_by_products_and_kernel_agree_on_a_mask(causal: bool) -> None:
    q, k, v = torch.randn(3, 2, 2, 256, 16)
    positions = document_positions(np.random.default_rng(0).integers(0, 50, (2, 256)) == EOD)
    mask = document_mask(positions, torch.float32, flex=False, causal=causal)
    assert isinstance(mask, Tensor)
    ours, theirs = product_attention(q, k, v, mask, causal), attend(q, k, v, mask, 0.0, causal)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_positions_count_from_the_end_of_the_document_before() -> None:
    tokens = np.array([[7, 7, 0, 7, 0, 0, 7], [0, 7, 7, 7, 7, 7, 7]])
    assert document_positions(tokens == 0).tolist() == [[0, 1, 0, 1, 0, 0, 1], [0, 1, 2, 3, 4, 5, 6]]


def test_dropout_goes_with_masking() -> None:
    module = make("llama", dropout=0.5)
    tokens, targets = window()
    inputs = (tokens, targets, torch.ones(tokens.shape), document_positions(tokens.numpy() == EOD))
    assert module(*inputs).isfinite() and module(*inputs) != module(*inputs)
    assert not pretrain.model.transformer.prefers_flex(module.model.config, torch.device("cuda"))
    assert pretrain.model.transformer.prefers_flex(Model(**SHAPE), torch.device("cuda"))
    assert not pretrain.model.transformer.prefers_flex(Model(**SHAPE), torch.device("cpu"))

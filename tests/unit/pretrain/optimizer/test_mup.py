"""Maximal update parametrisation: what a few steps do to a model does not depend on its width."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from configs.schema.model import Model
from configs.schema.train import Optimizer
from pretrain.model.transformer import Transformer
from pretrain.optimizer.groups import build_optimizer, parameter_groups

WIDTHS = (64, 128, 256, 512)
TEXT = torch.randint(32, (8, 9), generator=torch.Generator().manual_seed(3))


def build(width: int, base: int | None, heads: int | None = None, **extra: object) -> Transformer:
    """Heads of 16; or so many, as wide as they come to."""
    torch.manual_seed(1)
    shape = {"num_layers": 2, "hidden_size": width, "num_heads": heads or width // 16, "context_length": 8}
    wide_heads = {"mup_base_head_dim": base // heads} if base and heads else {}
    config = Model.model_validate({**shape, "mup_base_width": base, "qk_norm": True, **wide_heads, **extra})
    return Transformer(config, 32)


def changes(width: int, base: int | None, settings: Optimizer, **extra: object) -> list[float]:
    """Root mean squares of what three steps change: the first block's output, the last hidden states, the logits."""

    def seen() -> list[Tensor]:
        with torch.no_grad():
            inside: list[Tensor] = []
            hook = model.blocks[0].register_forward_hook(lambda *args: inside.append(args[2][0]))
            states = model.backbone(TEXT[:, :-1])
            hook.remove()
            return [inside[0], states, model.head(states)]

    model = build(width, base, **extra)
    optimizer, before = build_optimizer(model, settings), seen()
    for _ in range(3):
        model.loss(TEXT[:, :-1], TEXT[:, 1:], torch.full((8, 8), 1 / 64)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [float((after - first).square().mean().sqrt()) for first, after in zip(before, seen(), strict=True)]


def growth(sizes: Sequence[float]) -> float:
    """The exponent of width in sizes at `WIDTHS`, by least squares."""
    x = [math.log(width) for width in WIDTHS]
    middle = sum(x) / len(x)
    return sum((a - middle) * math.log(y) for a, y in zip(x, sizes, strict=True)) / sum((a - middle) ** 2 for a in x)


ADAMW = Optimizer(lr=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("extra", [{}, {"heads": 4}, {"tied_embeddings": True}], ids=["", "wide heads", "tied"])
def test_what_steps_change_does_not_grow_with_width(extra: dict[str, object]) -> None:
    """The coordinate check of arXiv:2203.03466, appendix D.1."""
    standard, mup = (
        [growth(sizes) for sizes in zip(*(changes(width, base, ADAMW, **extra) for width in WIDTHS), strict=True)]
        for base in (None, 64)
    )
    assert min(standard) > 0.3, standard
    assert max(mup) < 0.05 and min(mup) > -0.25, mup


def test_at_the_base_width_nothing_changes() -> None:
    plain, same = build(64, None, heads=4), build(64, 64, heads=4)
    assert torch.equal(plain(TEXT[:, :8]), same(TEXT[:, :8]))
    for with_base in (None, 64):
        assert changes(64, None, ADAMW) == changes(64, with_base, ADAMW)


def test_initial_weights_and_logits() -> None:
    wide = build(256, 64, heads=2)
    weights = {name: parameter.detach() for name, parameter in wide.named_parameters()}
    assert float(weights["embed.weight"].std()) == pytest.approx(0.02, rel=0.05)
    assert float(weights["blocks.0.attention.qkv.weight"].std()) == pytest.approx(0.02 / 2, rel=0.05)
    assert float(weights["blocks.1.mlp.down.weight"].std()) == pytest.approx(0.02 / 2 / math.sqrt(4), rel=0.05)
    states = torch.randn(3, 256)
    assert wide.lm_head is not None
    torch.testing.assert_close(wide.head(states), states @ wide.lm_head.weight.T / 4)
    assert wide.blocks[0].attention.query_scale == math.sqrt(32 / 128)


def test_cached_equals_uncached_and_loss_is_of_the_logits() -> None:
    model = build(64, 24, heads=4).eval()
    text = TEXT[:, :8]
    cache = model.new_cache(8, 8)
    with torch.no_grad():
        parts = [model(part, cache) for part in text.split([5, 1, 2], dim=1)]
        logits = model(text)
        torch.testing.assert_close(torch.cat(parts, dim=1), logits)
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), TEXT[:, 1:].flatten(), reduction="sum")
        for chunk in (7, None):
            torch.testing.assert_close(model.loss(text, TEXT[:, 1:], torch.ones(8, 8), chunk=chunk), expected)


def test_rates_and_decay_of_the_groups() -> None:
    settings = Optimizer.model_validate({"lr": 1e-3, "embedding_lr": 3e-3, "weight_decay": 0.2})
    found = {
        name: (group["lr"], group["ratio"], group["weight_decay"])
        for group in parameter_groups(build(256, 64), settings)
        for name in group["names"]
    }
    assert found["blocks.0.mlp.up.weight"] == found["blocks.1.attention.out.weight"] == (2.5e-4, 0.25, 0.8)
    assert found["lm_head.weight"] == (1e-3, 1.0, 0.2)
    assert found["embed.weight"] == (3e-3, 3.0, 0.2)
    assert found["norm.weight"] == (1e-3, 1.0, 0.0)
    muon = settings.model_copy(update={"name": "muon"})
    groups = {name: group["lr"] for group in parameter_groups(build(256, 64), muon) for name in group["names"]}
    assert groups["blocks.0.mlp.up.weight"] == muon.muon.lr and groups["lm_head.weight"] == 1e-3


def test_the_base_head_needs_the_base_width() -> None:
    with pytest.raises(ValueError, match="mup_base_head_dim needs mup_base_width"):
        Model(mup_base_head_dim=16)

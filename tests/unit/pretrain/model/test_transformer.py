"""The model by itself: cache, checkpointing, meta device, initial values, counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from configs.schema.model import Model
from eval.reading.scoring import BatchSize, scored_windows
from eval.reading.windows import Window
from pretrain.generation.decode import Decoder
from pretrain.interchange.exportable import architecture_of
from pretrain.model.attention import HeadNorm, product_attention
from pretrain.model.transformer import Transformer

SHAPE: dict[str, Any] = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "context_length": 16}
SETTINGS = {
    "gpt2": {"family": "gpt2"},
    "llama": {"family": "llama", "num_kv_heads": 2},
    "qwen3": {"family": "llama", "num_kv_heads": 1, "qk_norm": True, "tied_embeddings": True, "head_dim": 12},
}
VOCAB = 40


@pytest.fixture(params=SETTINGS)
def model(request: pytest.FixtureRequest) -> Transformer:
    torch.manual_seed(0)
    return Transformer(Model(**SHAPE, **SETTINGS[request.param], init_std=0.2), VOCAB).eval()


def tokens(rows: int = 3, length: int = 16) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("cuts", [[16], [5, 1, 1, 9], [1] * 16])
def test_cached_logits_equal_uncached(model: Transformer, cuts: list[int]) -> None:
    cache = model.new_cache(3, 16)
    with torch.no_grad():
        parts = [model(part, cache) for part in tokens().split(cuts, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens()), atol=1e-5, rtol=1e-5)
    assert cache.length == 16


def test_no_position_sees_the_future(model: Transformer) -> None:
    changed = tokens().clone()
    changed[:, 9] = (changed[:, 9] + 1) % VOCAB
    with torch.no_grad():
        difference = (model(tokens()) - model(changed)).abs().amax(dim=(0, 2))
    assert (difference[:9] == 0).all() and (difference[9:] > 0).all()


def test_a_model_that_reads_both_ways_sees_the_future_and_decodes_with_no_cache() -> None:
    both = Transformer(Model(**SHAPE, causal=False, init_std=0.2), VOCAB).eval()
    changed = tokens().clone()
    changed[:, 9] = (changed[:, 9] + 1) % VOCAB
    with torch.no_grad():
        difference = (both(tokens()) - both(changed)).abs().amax(dim=(0, 2))
    assert (difference > 0).all()
    refused = [
        lambda: both.new_cache(1, 8),
        lambda: Decoder(both),
        lambda: architecture_of(both.config),
        lambda: next(scored_windows(both, [Window((0, 1, 2), 2)], VOCAB, BatchSize(64, None))),
    ]
    for ask in refused:
        with pytest.raises(ValueError, match=r"needs a model that predicts each token from those before it"):
            ask()


def test_too_many_tokens_are_refused(model: Transformer) -> None:
    with pytest.raises(ValueError, match=r"17 tokens do not fit model\.context_length 16"):
        model(tokens(1, 17))
    cache = model.new_cache(1, 17)
    model(tokens(1, 12), cache)
    with pytest.raises(ValueError, match="17 tokens"):
        model(tokens(1, 5), cache)


def test_dropout_only_in_training() -> None:
    model = Transformer(Model(**SHAPE, dropout=0.5), VOCAB)
    assert not torch.equal(model(tokens()), model(tokens()))
    model.eval()
    assert torch.equal(model(tokens()), model(tokens()))


@pytest.mark.filterwarnings("error")
def test_autocast_normalises_heads_in_fp32_without_a_warning() -> None:
    head = HeadNorm(8)
    nn.init.normal_(head.weight)
    x = torch.randn(2, 4, 2, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        made = head(x)
    expected = x.double() / (x.double().square().mean(dim=-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.double(), (expected * head.weight.double()).bfloat16().double(), rtol=8e-3, atol=0)


def test_meta_device_then_weights(model: Transformer) -> None:
    with torch.device("meta"):
        empty = Transformer(model.config, VOCAB)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert empty.parameter_count() == model.parameter_count()
    copy = empty.materialize("cpu").eval()
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy(tokens()), model(tokens()))
    torch.manual_seed(0)
    copy.init_weights()  # the fixture's seed: the same values again
    assert torch.equal(copy(tokens()), model(tokens()))


def test_initial_values_follow_the_table() -> None:
    settings = {"num_layers": 8, "hidden_size": 128, "num_heads": 4, "context_length": 64, "init_std": 0.05}
    model = Transformer(Model(family="gpt2", **settings, tied_embeddings=False), 512)
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            assert (value == 0).all(), name
        elif "norm" in name:
            assert (value == 1).all(), name
        else:
            residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
            assert value.std().item() == pytest.approx(0.05 / (math.sqrt(16) if residual else 1), rel=0.05), name
            assert abs(value.mean().item()) < 0.002, name


def test_first_loss_is_that_of_a_uniform_guess() -> None:
    model = Transformer(Model(family="gpt2", num_layers=2, hidden_size=64, num_heads=4, context_length=16), VOCAB)
    loss = F.cross_entropy(model(tokens()[:, :-1]).flatten(0, 1), tokens()[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(VOCAB), abs=0.2)


def test_gpt2_has_its_known_size() -> None:
    config = Model(family="gpt2")  # GPT-2 small is the default shape
    with torch.device("meta"):
        count = Transformer(config, 50257).parameter_count()
    assert count == (124_439_808, 124_439_808 - (50257 + 1024) * 768)


@pytest.mark.parametrize("name", SETTINGS)
def test_flops_formula_equals_counted_operations(name: str) -> None:
    """Within 1%: the formula counts norms and biases as if they were matrices, and nothing else differs."""
    settings = {"num_layers": 3, "hidden_size": 128, "num_heads": 4, "context_length": 96}
    model = Transformer(Model(**settings, **SETTINGS[name]), 256)
    text = torch.randint(0, 256, (2, 96))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(text).sum().backward()
    assert counter.get_total_flops() / text.numel() == pytest.approx(model.flops_per_token(), rel=0.01)


@pytest.mark.slow
def test_compiles_in_one_graph(model: Transformer) -> None:
    # The graph is what must be whole; making machine code of it would need a compiler and half a minute.
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens()), model(tokens()))


def test_every_weight_is_used_inside_its_own_module(model: Transformer) -> None:
    """ZeRO-3 gathers a module's weights only while its own forward runs."""
    running: list[nn.Module] = []
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, _: running.append(module))
        module.register_forward_hook(lambda *_: running.pop() and None)
    owners = {id(weight): module for module in model.modules() for weight in module.parameters(recurse=False)}
    used: set[int] = set()

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            for value in (*args, *(kwargs or {}).values()):
                if id(value) in owners:
                    assert owners[id(value)] in running, func
                    used.add(id(value))
            return func(*args, **(kwargs or {}))

    with Watch():
        model(tokens())
    assert used == set(owners)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads", "length"), [(4, 4, 16), (4, 2, 256), (2, 1, 384), (2, 2, 512)])
def test_attention_by_products_equals_torchs(heads: int, kv_heads: int, length: int, causal: bool) -> None:
    q = torch.randn(2, heads, length, 8, requires_grad=True)
    k, v = (torch.randn(2, kv_heads, length, 8, requires_grad=True) for _ in range(2))
    ours = product_attention(q, k, v, causal=causal)
    theirs = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    for mine, reference in zip(
        torch.autograd.grad(ours, (q, k, v), upstream), torch.autograd.grad(theirs, (q, k, v), upstream), strict=True
    ):
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize("extra", [{"value_residual": True}, {"logit_softcap": 5.0}, {"activation": "relu2"}])
def test_published_settings_change_the_function_and_not_the_cached_one(extra: dict[str, Any]) -> None:
    torch.manual_seed(0)
    shape = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "context_length": 16}
    model = Transformer(Model(**shape, **extra), 64).eval()
    plain = Transformer(Model(**shape), 64).eval()
    text = torch.randint(64, (2, 12))
    cache = model.new_cache(2, 12)
    steps = [model(text[:, :5], cache), model(text[:, 5:], cache)]
    torch.testing.assert_close(torch.cat(steps, dim=1), model(text))
    assert model(text).shape == plain(text).shape
    if "logit_softcap" in extra:
        assert model(text).abs().max() < 5.0
    with pytest.raises(ValueError, match=f"{next(iter(extra))}"):
        architecture_of(model.config)


def test_zero_init_makes_each_block_the_identity() -> None:
    model = Transformer(Model(num_layers=2, hidden_size=32, num_heads=2, context_length=16, zero_init=True), 64)
    x = torch.randn(1, 8, 32)
    rotation = model._rotation(torch.arange(8), x.dtype)
    assert torch.equal(model.blocks[0](x, rotation)[0], x)

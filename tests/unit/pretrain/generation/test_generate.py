"""Generation: with the cache as without, in a batch as alone, and drawn from the right distribution."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from configs.schema.model import Model
from pretrain.generation.generate import generate, generate_batch
from pretrain.generation.sampling import GREEDY, Sampling, distribution
from pretrain.model.transformer import Transformer

VOCAB = 40
CONTEXT = 16


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> Transformer:
    torch.manual_seed(2)
    settings: dict[str, Any] = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "num_kv_heads": 2}
    return Transformer(Model(family=request.param, **settings, context_length=CONTEXT, init_std=0.3), VOCAB).eval()


def greedy_without_cache(model: Transformer, prompt: list[int], count: int) -> list[int]:
    """The stated rule, token by token: what does not fit the context is cut to its second half."""
    text, new = prompt[-CONTEXT:], []
    for _ in range(count):
        if len(text) > CONTEXT:
            text = text[-CONTEXT // 2 :]
        with torch.no_grad():
            new.append(int(model(torch.tensor([text]))[0, -1].argmax()))
        text = [*text, new[-1]]
    return new


@pytest.mark.parametrize("length", [1, 10, CONTEXT, CONTEXT + 5])
def test_cached_equals_uncached_beyond_the_context(model: Transformer, length: int) -> None:
    prompt = [(7 * index + 3) % VOCAB for index in range(length)]
    expected = greedy_without_cache(model, prompt, 40)
    assert len(set(expected)) > 3  # a constant text would prove little
    assert list(generate(model, prompt, 40, GREEDY)) == expected


PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [10], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22], [23, 24]]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_batch_equals_one_by_one(model: Transformer, temperature: float) -> None:
    """Rows of different lengths, that overflow at different times and stop at different times."""
    sampling: dict[str, Any] = {"temperature": temperature, "top_k": 20, "top_p": 0.9, "vocab_size": 33}
    free = generate_batch(model, PROMPTS, 30, Sampling(**sampling, seed=3))
    stop = {free[0][4], free[2][11]}
    alone = [
        list(generate(model, p, 30, Sampling(**sampling, stop=stop, seed=3 + row))) for row, p in enumerate(PROMPTS)
    ]
    assert generate_batch(model, PROMPTS, 30, Sampling(**sampling, stop=stop, seed=3)) == alone
    assert len(set(map(len, alone))) > 1
    for row, text in enumerate(alone):
        assert text == free[row][: len(text)] and not stop & set(text)
        assert len(text) == 30 or free[row][len(text)] in stop
    assert max(map(max, free)) < 33


def test_a_seed_repeats_and_another_differs(model: Transformer) -> None:
    first, again, other = (list(generate(model, [1], 30, Sampling(seed=seed))) for seed in (5, 5, 6))
    assert first == again != other


def test_it_streams(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    head = model.head
    monkeypatch.setattr(model, "head", lambda *arguments: calls.append(1) or head(*arguments))
    stream = generate(model, [1], 1000, GREEDY)
    next(stream), next(stream)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("prompt", "words"), [([], "prompt is empty"), ([3, VOCAB], "vocabulary has 40"), ([-1], "-1 to")]
)
def test_bad_prompts_are_refused(model: Transformer, prompt: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        next(generate(model, prompt, 1))
    with pytest.raises(ValueError, match=r"temperature -0\.1"):
        Sampling(temperature=-0.1)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": float("nan")}, {"temperature": float("inf")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}],
)
def test_samplings_that_cannot_be(model: Transformer, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"temperature|top-k|top-p"):
        Sampling(**settings)


def test_no_top_k_and_no_temperature_is_too_small(model: Transformer) -> None:
    greedy = list(generate(model, [1], 8, GREEDY))
    assert list(generate(model, [1], 8, Sampling(1e-45))) == list(generate(model, [1], 8, Sampling(1e-300))) == greedy
    assert list(generate(model, [1], 8, Sampling(top_k=0))) == list(generate(model, [1], 8))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logits_that_are_no_numbers(model: Transformer, value: float, temperature: float) -> None:
    with torch.no_grad():
        model.embed.weight.fill_(value)
    with pytest.raises(ValueError, match="Did training diverge"):
        next(generate(model, [1], 3, Sampling(temperature)))


def test_nothing_asked_nothing_given(model: Transformer) -> None:
    assert list(generate(model, [1], 0)) == [] == generate_batch(model, [], 5)
    assert generate_batch(model, [[1], [2]], 0) == [[], []]


LOGITS = torch.tensor([2.0, 0.5, 1.0, -1.0, 0.0])


def test_distribution_by_hand() -> None:
    raw = LOGITS.double().exp()
    torch.testing.assert_close(distribution(LOGITS, 1.0).double(), raw / raw.sum())
    sharp = (LOGITS.double() / 0.5).exp()
    torch.testing.assert_close(distribution(LOGITS, 0.5).double(), sharp / sharp.sum())
    kept = raw * torch.tensor([1, 1, 1, 0, 0])
    torch.testing.assert_close(distribution(LOGITS, 1.0, top_k=3).double(), kept / kept.sum())
    # Probabilities 0.559, 0.206, 0.125, 0.076, 0.028 …: 0.7 is reached by the second, 0.5 by the first.
    kept = raw * torch.tensor([1, 0, 1, 0, 0])
    torch.testing.assert_close(distribution(LOGITS, 1.0, top_p=0.7).double(), kept / kept.sum())
    assert distribution(LOGITS, 1.0, top_p=0.5).tolist() == [1, 0, 0, 0, 0]
    # top_p counts within what top_k left: of two, the first has 0.73.
    assert distribution(LOGITS, 1.0, top_k=2, top_p=0.7).tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (7, None), (None, 0.6), (12, 0.8), (1, None), (99, 1.0)])
def test_distribution_equals_transformers(top_k: int | None, top_p: float | None) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(8, 40, generator=torch.Generator().manual_seed(0)) * 2
    warpers = [TemperatureLogitsWarper(0.7)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p else []
    warped = logits
    for warper in warpers:
        warped = warper(None, warped)
    torch.testing.assert_close(distribution(logits, 0.7, top_k, top_p), warped.softmax(dim=-1))


def test_draws_follow_the_distribution() -> None:
    torch.manual_seed(1)
    config = Model(num_layers=1, hidden_size=16, num_heads=2, context_length=4, init_std=0.5)
    model = Transformer(config, 6).eval()
    with torch.no_grad():
        chances = distribution(model(torch.tensor([[1, 2]]))[0, -1], 0.9, top_k=4)
    draws = 4000
    texts = generate_batch(model, [[1, 2]] * draws, 1, Sampling(0.9, top_k=4, seed=10))
    seen = torch.bincount(torch.tensor(texts).flatten(), minlength=6) / draws
    # Five standard errors.
    assert ((seen - chances).abs() <= 5 * (chances * (1 - chances) / draws).sqrt()).all()
    assert 0.1 < chances.max() < 0.95

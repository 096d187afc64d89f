"""Bits per byte against a direct computation in float64, one forward pass per token."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from configs.schema.data import Tokenizer
from configs.schema.model import Model
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from eval.likelihood.conventions import Convention
from eval.likelihood.perplexity import perplexity_results, score_texts
from eval.reading.reader import LocalReader
from eval.reading.windows import sliding_windows
from pretrain.model.transformer import Transformer

CONTEXT = 12
TEXTS = [
    "The quick brown fox, 三国志 and 🦊 café.\nSecond line\twith a tab.",
    "x",
    "A longer document, so that the window has to slide over it several times before it reaches the end.",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small take longer to share out than to multiply."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> Transformer:
    torch.manual_seed(0)
    config = Model(
        family=request.param,
        num_layers=2,
        hidden_size=32,
        num_heads=4,
        context_length=CONTEXT,
        vocab_size=320,
        init_std=0.2,
    )
    return Transformer(config, 320).eval()


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return train_vocab(Tokenizer(vocab_size=300), TEXTS * 3)


def naive_nats(model: Transformer, vocab: Vocab, text: str, stride: int) -> float:
    """Sums -log p token by token in float64; the context of token i is what a window moving by `stride` lets it see."""
    exact = Transformer(model.config, model.vocab_size).double().eval()
    exact.load_state_dict(model.state_dict())
    ids = [vocab.eod_id, *vocab.encode(text)]
    total, end = 0.0, CONTEXT
    with torch.no_grad():
        for target in range(1, len(ids)):
            while target > end:
                end = min(end + stride, len(ids) - 1)
            start = max(0, min(end, len(ids) - 1) - CONTEXT)
            logits = exact(torch.tensor([ids[start:target]]))[0, -1, : vocab.size]
            total -= float(logits.log_softmax(-1)[ids[target]])
    return total


@pytest.mark.parametrize("stride", [1, 5, CONTEXT])
def test_equals_direct_computation(model: Transformer, vocab: Vocab, stride: int) -> None:
    scores = score_texts(LocalReader(model, vocab.size, 4), vocab, TEXTS, Convention(CONTEXT, stride))
    nats = np.bincount(scores.document, weights=scores.nats)
    direct = [naive_nats(model, vocab, text, stride) for text in TEXTS]
    np.testing.assert_allclose(nats, direct, rtol=1e-5)
    assert scores.bytes.sum() == sum(len(text.encode()) for text in TEXTS)
    assert scores.tokens.sum() == sum(len(vocab.encode(text)) for text in TEXTS)
    results = {result.name: result for result in perplexity_results("s", scores, stride, 100)}
    expected = sum(direct) / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    assert results["perplexity/s/bits_per_byte"].value == pytest.approx(expected, rel=1e-5)
    assert results["perplexity/s/perplexity"].value == pytest.approx(
        math.exp(sum(direct) / scores.tokens.sum()), rel=1e-5
    )
    assert results["perplexity/s/bits_per_byte"].n == 3


def test_stride_one_sees_full_context(model: Transformer, vocab: Vocab) -> None:
    """With one new token per window each token is conditioned on all the context the model can read."""
    ids = np.array([vocab.eod_id, *vocab.encode(TEXTS[2])])
    total = 0.0
    with torch.no_grad():
        for target in range(1, len(ids)):
            logits = model(torch.from_numpy(ids[None, max(0, target - CONTEXT) : target]))[0, -1, : vocab.size].double()
            total -= float(logits.log_softmax(-1)[ids[target]])
    scored = score_texts(LocalReader(model, vocab.size, 8), vocab, [TEXTS[2]], Convention(CONTEXT, 1))
    assert scored.nats.sum() == pytest.approx(total, rel=1e-6)


def test_batch_size_changes_nothing(model: Transformer, vocab: Vocab) -> None:
    one, *others = [
        score_texts(LocalReader(model, vocab.size, batch_size), vocab, TEXTS, Convention(CONTEXT, 5)).nats
        for batch_size in (1, 3, 64)
    ]
    for other in others:
        np.testing.assert_allclose(other, one, rtol=1e-6)


def test_windows_score_every_token_once() -> None:
    tokens = np.arange(50)
    for first in (1, 7, 20):
        for stride in (1, 4, 8):
            windows = list(sliding_windows(tokens, first, 8, stride))
            scored = np.concatenate([window.tokens[-window.scored :] for window in windows])
            np.testing.assert_array_equal(scored, tokens[first:])
            assert all(len(window.tokens) <= 9 for window in windows)


def test_padding_rows_get_no_probability(model: Transformer, vocab: Vocab) -> None:
    """A row of the embedding that belongs to no token must not take probability from the tokens."""
    ids = np.array([vocab.eod_id, *vocab.encode("Some text")])[: CONTEXT + 1]
    window = list(sliding_windows(ids, 1, CONTEXT, CONTEXT))
    before = LocalReader(model, vocab.size, 1).score(window)[0].nats
    widened = Transformer(model.config, model.vocab_size).eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    weights["embed.weight" if model.lm_head is None else "lm_head.weight"][vocab.size :] = 3.0
    widened.load_state_dict(weights)
    assert LocalReader(widened, vocab.size, 1).score(window)[0].nats == pytest.approx(before, rel=1e-6)


def test_greedy_flag(model: Transformer, vocab: Vocab) -> None:
    prompt = np.array([vocab.eod_id, *vocab.encode("The qu")])
    with torch.no_grad():
        logits = model(torch.from_numpy(prompt[None]))[0, -1, : vocab.size]
    best, worst = int(logits.argmax()), int(logits.argmin())
    for token, greedy in ((best, True), (worst, False)):
        window = list(sliding_windows(np.array([*prompt, token]), len(prompt), CONTEXT, CONTEXT))
        assert LocalReader(model, vocab.size, 1).score(window)[0].greedy is greedy

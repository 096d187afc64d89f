"""The player: rows that join, leave, share a prompt or are cancelled give what they would give alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from configs.schema.model import Model
from pretrain.generation import decode, row_cache
from pretrain.generation.noise import noise_keys
from pretrain.generation.player import Answer, Event, Player, Request
from pretrain.generation.sampling import GREEDY, Sampling
from pretrain.model.transformer import Transformer

VOCAB, CONTEXT = 40, 32
SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": {"family": "gpt2"},
    "gpt2-untied": {"family": "gpt2", "tied_embeddings": False, "bias": False},
    "llama": {"family": "llama"},
    "grouped": {"family": "llama", "num_kv_heads": 1},
    "qk-norm": {"family": "llama", "num_kv_heads": 2, "qk_norm": True, "tied_embeddings": True},
    "value-residual": {"family": "llama", "value_residual": True, "activation": "relu2"},
    "softcap": {"family": "llama", "logit_softcap": 5.0, "head_dim": 16},
    "mup": {"family": "llama", "mup_base_width": 16, "mup_base_head_dim": 4, "qk_norm": True},
    "yarn": {
        "family": "llama",
        "rope_scaling": {"kind": "yarn", "factor": 4.0, "original_context_length": 8},
    },
}


def make(**settings: Any) -> Transformer:
    torch.manual_seed(3)
    shape: dict[str, Any] = {"num_layers": 3, "hidden_size": 32, "num_heads": 4, "context_length": CONTEXT}
    model = Transformer(Model(**{**shape, **settings, "init_std": 0.2}), VOCAB).eval()
    with torch.no_grad():  # norms and biases of ones and zeros would hide a mistake
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


@pytest.fixture(params=SETTINGS)
def model(request: pytest.FixtureRequest) -> Transformer:
    return make(**SETTINGS[request.param])


@pytest.fixture(scope="module")
def llama() -> Transformer:
    return make(**SETTINGS["qk-norm"])


def prompt(length: int, start: int = 0) -> list[int]:
    return [(7 * index + start) % VOCAB for index in range(length)]


def log_probs(model: Transformer, text: list[int], new: int, temperature: float) -> list[float]:
    """Of the last `new` tokens, by the model's ordinary forward pass over the whole text."""
    ids = torch.tensor([text])
    with torch.no_grad():
        row: list[float] = model.log_probs(ids[:, :-1], ids[:, 1:], temperature=temperature)[0].tolist()
    return row[-new:]


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_log_probs_equal_those_of_the_ordinary_forward(model: Transformer, temperature: float) -> None:
    """Rows of different lengths that share steps, through the whole context."""
    requests = [
        Request(prompt(length, length), CONTEXT - length, Sampling(temperature, seed=9)) for length in (1, 20, 7)
    ]
    for request, answer in zip(requests, Player(model).run(requests), strict=True):
        text = [*request.prompt, *answer.ids]
        assert len(text) == CONTEXT and answer.finish == "length"
        expected = log_probs(model, text, len(answer.ids), temperature)
        assert answer.log_probs == pytest.approx(expected, abs=1e-5)
        assert len(set(answer.ids)) > 1


def alone(model: Transformer, request: Request) -> list[Answer]:
    return Player(model).run([request])


def test_rows_that_join_later_leave_early_or_wait_change_nothing(llama: Transformer) -> None:
    requests = [
        Request(prompt(3), 9, Sampling(seed=1), samples=2),
        Request(prompt(12, 5), 20, Sampling(0.7, top_k=9, seed=2)),
        Request(prompt(5, 1), 60, Sampling(1.3, top_p=0.8, vocab_size=30, seed=3), samples=3),  # beyond the context
        Request(prompt(40, 2), 5, GREEDY),
        Request(prompt(1, 4), 1, Sampling(seed=4)),
    ]
    expected = [answer for request in requests for answer in alone(llama, request)]
    assert [answer.ids for answer in Player(llama).run(requests)] == [answer.ids for answer in expected]
    assert [answer.ids for answer in Player(llama, max_rows=3).run(requests)] == [answer.ids for answer in expected]
    player, rows, ids = Player(llama), [], {}
    for request in requests:
        rows += player.add(request)
        for event in [*player.step(), *player.step()]:
            ids.setdefault(event.row, []).append(event.token)
    for event in player.events():
        ids.setdefault(event.row, []).append(event.token)
    assert [ids[row] for row in rows] == [answer.ids for answer in expected]
    assert not player.busy and player.step() == []


def test_samples_of_a_prompt_read_it_once_and_differ(llama: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    backbone = llama.backbone
    monkeypatch.setattr(llama, "backbone", lambda tokens, cache: read.append(tokens.shape) or backbone(tokens, cache))
    keys = noise_keys(5, "rollout", [8, 8, 8], [0, 1, 2])
    together = Player(llama).run([Request(prompt(6), 12, samples=3, keys=[int(key) for key in keys])])
    assert read == [(1, 6)]
    for key, answer in zip(keys, together, strict=True):
        assert alone(llama, Request(prompt(6), 12, keys=[int(key)]))[0].ids == answer.ids
    assert len({tuple(answer.ids) for answer in together}) == 3


def test_a_cancelled_row_leaves_and_the_others_go_on(llama: Transformer) -> None:
    requests = [Request(prompt(4, start), 12, Sampling(seed=start)) for start in range(4)]
    expected = [alone(llama, request)[0].ids for request in requests]
    player = Player(llama, max_rows=3)
    rows = [row for request in requests for row in player.add(request)]
    events = player.step()
    player.cancel(rows[0])
    player.cancel(rows[0])
    player.cancel(99)
    events += player.step()  # the fourth, which waited, has joined
    events += list(player.events())
    ids = [[event.token for event in events if event.row == row] for row in rows]
    assert ids == [expected[0][:1], *expected[1:]]
    row = player.add(requests[0])[0]
    player.cancel(row)  # before it has joined
    assert not player.busy


def test_stop_ids_and_ends_belong_to_the_answer(llama: Transformer) -> None:
    free = alone(llama, Request(prompt(5), 20, Sampling(seed=6)))[0].ids
    stop = free[7]
    first = free.index(stop)
    answer = alone(llama, Request(prompt(5), 20, Sampling(seed=6, stop={stop})))[0]
    assert (answer.ids, answer.finish) == (free[: first + 1], "stop")
    over = alone(llama, Request(prompt(5), 20, Sampling(seed=6), is_over=lambda new: len(new) == 4))[0]
    assert (over.ids, over.finish) == (free[:4], "stop")


def test_forced_tokens_are_read_but_not_drawn(llama: Transformer) -> None:
    sampling = Sampling(seed=7)
    free = alone(llama, Request(prompt(5), 12, sampling))[0]

    def tool(new: list[int]) -> list[int] | None:
        return [31, 32, 33] if len(new) == 4 else None

    answer = alone(llama, Request(prompt(5), 12, sampling, forced=tool))[0]
    assert answer.ids[:7] == [*free.ids[:4], 31, 32, 33] and len(answer.ids) == 12
    assert answer.forced == [False] * 4 + [True] * 3 + [False] * 5
    expected = log_probs(llama, [*prompt(5), *answer.ids], 12, 1.0)
    for value, forced, right in zip(answer.log_probs, answer.forced, expected, strict=True):
        assert value == (0.0 if forced else pytest.approx(right, abs=1e-5))
    # The token after them takes the noise that the fifth would have taken.
    later = Request([*prompt(5), *answer.ids[:7]], 1, keys=[int(noise_keys(7, "text", [0], [0])[0])])
    player = Player(llama)
    player.add(later)
    player._rows, player._waiting[0][0].drawn = [], 4
    assert player.step()[0].token == answer.ids[7]


def test_raw_log_probs_and_the_most_likely(llama: Transformer) -> None:
    for sampling in (GREEDY, Sampling(0.5, top_k=3, seed=1)):
        player = Player(llama)
        player.add(Request(prompt(5), 4, sampling, top_log_probs=3))
        text = prompt(5)
        for event in player.events():
            with torch.no_grad():
                table = llama(torch.tensor([text]))[0, -1].log_softmax(dim=-1)
            assert event.raw_log_prob == pytest.approx(float(table[event.token]), abs=1e-5)
            best = table.topk(3)
            assert [token for token, _ in event.top] == best.indices.tolist()
            assert [value for _, value in event.top] == pytest.approx(best.values.tolist(), abs=1e-5)
            assert event.log_prob <= 0 and (sampling is GREEDY) == (event.log_prob == 0)
            text.append(event.token)
    assert Player(llama).run([Request(prompt(2), 1)])[0].log_probs[0] < 0


def test_bad_requests(llama: Transformer) -> None:
    player = Player(llama, max_rows=2)
    for request, words in [
        (Request([], 1), "prompt is empty"),
        (Request([VOCAB], 1), "vocabulary has 40"),
        (Request([1], 0), "max_new_tokens 0"),
        (Request([1], 1, samples=3), "3 samples need more rows than the 2"),
        (Request([1], 1, samples=2, keys=[1]), "1 keys for 2 samples"),
    ]:
        with pytest.raises(ValueError, match=words):
            player.add(request)
    assert not player.busy


def test_events_say_what_happened(llama: Transformer) -> None:
    player = Player(llama)
    row = player.add(Request(prompt(3), 2, Sampling(seed=2)))[0]
    first, second = player.step()[0], player.step()[0]
    assert isinstance(first, Event) and (first.row, first.finished, first.forced, first.top) == (row, None, False, ())
    assert second.finished == "length" and math.isfinite(second.log_prob) and first.raw_log_prob is None


@pytest.mark.parametrize("max_rows", [None, 2])
def test_what_prompts_begin_with_is_read_once(
    max_rows: int | None, model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few-shot examples, also for those that join later; the answers are those to each prompt alone."""
    monkeypatch.setattr(row_cache, "_SHARED", 8)
    shots = prompt(14)
    prompts = [[*shots, *prompt(length, start)] for length, start in ((5, 3), (1, 9), (7, 20), (3, 31))]
    prompts += [shots, prompt(12, 5), [*shots[:9], 1]]
    requests = [Request(ids, 6, GREEDY if number % 2 else Sampling(seed=number)) for number, ids in enumerate(prompts)]
    alone = [Player(model).run([request])[0].ids for request in requests]
    read, ordinary = [], model.backbone

    def watched(tokens: torch.Tensor, *arguments: Any) -> torch.Tensor:
        read.append(tokens.shape)
        return ordinary(tokens, *arguments)

    monkeypatch.setattr(model, "backbone", watched)
    player = Player(model, max_rows)
    assert [answer.ids for answer in player.run(requests[:4])] == alone[:4]
    assert read[0][0] == 1 and sum(shape.numel() for shape in read) <= 14 + 4 * 7 + 7, read
    assert [answer.ids for answer in player.run(requests)] == alone


@pytest.mark.parametrize(("rows", "by_module"), [(1, 0), (8, 0), (9, 1)])
def test_a_large_head_is_multiplied_by_a_copy_for_few_rows(rows: int, by_module: int) -> None:
    head, calls = torch.nn.Linear(400, 1500, bias=False).requires_grad_(False), []
    head.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(rows, 400)
    product = decode._Matrix(head, most_bytes=2**22)(x)
    assert len(calls) == by_module
    torch.testing.assert_close(product, x @ head.weight.t(), rtol=1e-5, atol=1e-5)

"""Continues a text token by token, or several at once: what most callers want of `pretrain.generation.player`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pretrain.generation.player import IsOver, Player, Request
from pretrain.generation.sampling import GREEDY, PLAIN, Sampling
from pretrain.model.transformer import Transformer


def generate(
    model: Transformer,
    tokens: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling = PLAIN,
    is_over: IsOver | None = None,
) -> Iterator[int]:
    """Continues `tokens`, yielding each new token as it is chosen.

    `is_over` is asked after each token with all new tokens so far; True ends the text, whose last token is kept.

    Raises:
        ValueError: at the first token asked for: for an empty prompt, an unknown token id, or a model whose logits are
            NaN or infinite.
    """
    if max_new_tokens < 1:
        return
    player = Player(model)
    player.add(Request(tokens, max_new_tokens, sampling, is_over=is_over))
    for event in player.events():
        if event.token not in sampling.stop:
            yield event.token


def generate_batch(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    is_over: IsOver | None = None,
    max_rows: int | None = None,
) -> list[list[int]]:
    """New tokens of each prompt, computed together, at most `max_rows` at a time.

    Row r equals `generate` of prompt r alone with the seed `sampling.seed + r`.
    """
    if max_new_tokens < 1:
        return [[] for _ in prompts]
    player = Player(model, max_rows)
    requests = [
        Request(prompt, max_new_tokens, replace(sampling, seed=sampling.seed + row), is_over=is_over)
        for row, prompt in enumerate(prompts)
    ]
    answers = player.run(requests)
    return [[token for token in answer.ids if token not in sampling.stop] for answer in answers]

"""Generates text from a model with a key/value cache, one prompt streaming or several at once.

When a text outgrows the context, the model goes on from its last `context_length // 2` tokens, read again into a fresh
cache. Of a prompt longer than the context, the last `context_length` tokens are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.model.transformer import Transformer

NO_PROBABILITIES = (
    "the checkpoint gives no finite probabilities. Did training diverge? See metrics.jsonl, and take an earlier "
    "checkpoint: --step N, or --best"
)


@dataclass(frozen=True)
class Sampling:
    """Settings that choose the next token from the model's logits, and that end a text.

    Attributes:
        temperature: logits are divided by it; 0 takes the most likely token.
        top_k: only so many of the most likely tokens; None or 0: all.
        top_p: of these, only the most likely ones up to the first at which their probabilities sum to it (nucleus
            sampling, arXiv:1904.09751); None or 1: all.
        seed: of the draws; equal settings give equal text.
        stop: token ids that end the text; they do not belong to it.
        vocab_size: ids from here on (the padding of the vocabulary) are never chosen; None: the model's rows.

    Raises:
        ValueError: for settings that no distribution can be made of, naming what may stand there.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    stop: Collection[int] = ()
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(
                f"temperature {self.temperature}: give a number of 0 or more; 0 takes the most likely token"
            )
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"top-k {self.top_k} is negative: give the number of tokens to choose among; 0 is off")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top-p {self.top_p}: give a probability above 0 and up to 1; 1 is off")

    def choose(self, logits: Tensor, generators: Sequence[torch.Generator]) -> list[int]:
        """A token for each row of logits (B, V), each drawn from its own generator.

        Raises:
            ValueError: when a logit is NaN or infinite.
        """
        logits = logits[:, : self.vocab_size]
        if not torch.isfinite(logits).all():
            raise ValueError(NO_PROBABILITIES)
        if self.temperature == 0:
            tokens: list[int] = logits.argmax(dim=-1).tolist()
            return tokens
        # Drawn on the CPU, from a generator per row: the same text on every device and in every batch.
        chances = distribution(logits, self.temperature, self.top_k, self.top_p).cpu()
        return [int(torch.multinomial(row, 1, generator=own)) for row, own in zip(chances, generators, strict=True)]


GREEDY = Sampling(temperature=0.0)


def distribution(logits: Tensor, temperature: float, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Probabilities (…, V), fp32, that the next token is drawn from; arguments as in `Sampling`, `temperature` above 0.

    The temperature comes first, then `top_k`, then `top_p` of what that leaves.
    """
    # Relative to the largest, and in double precision: no temperature, however small, makes an infinite logit.
    logits = logits.double()
    logits = ((logits - logits.amax(dim=-1, keepdim=True)) / temperature).float()
    if top_k and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    probabilities = logits.softmax(dim=-1)
    if top_p is not None and top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        already_reached = ordered.cumsum(dim=-1) - ordered >= top_p
        kept = torch.zeros_like(ordered).scatter(-1, order, ordered.masked_fill(already_reached, 0.0))
        probabilities = kept / kept.sum(dim=-1, keepdim=True)
    return probabilities


# Told the new tokens of a text after each one; says whether the text is over.
IsOver = Callable[[Sequence[int]], bool]


class Decoder:
    """Holds texts and the model's cache of them: gives the logits of their next tokens, takes the tokens chosen."""

    def __init__(self, model: Transformer, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """`max_new_tokens` sizes the cache. Raises `ValueError` for an empty prompt or an unknown token id."""
        assert not model.training, "call model.eval() first: dropout has no place in generation"
        for prompt in prompts:
            if not prompt:
                raise ValueError("a prompt is empty; give at least one token, such as the end-of-text token")
            if not 0 <= min(prompt) <= max(prompt) < model.vocab_size:
                raise ValueError(
                    f"a prompt has token ids {min(prompt)} to {max(prompt)}, but the model's vocabulary has "
                    f"{model.vocab_size}; encode it with the tokenizer the model was trained with"
                )
        self._model, self._room = model, max_new_tokens
        self._texts = [list(prompt[-model.config.context_length :]) for prompt in prompts]
        self._read()

    @torch.inference_mode()
    def _read(self) -> None:
        """Reads all texts into a fresh cache, padded on the left to one length."""
        device = self._model.embed.weight.device
        longest = max(map(len, self._texts))
        padding = [longest - len(text) for text in self._texts]
        tokens = [[0] * pad + text for pad, text in zip(padding, self._texts, strict=True)]
        capacity = min(self._model.config.context_length, longest + self._room)
        padded = torch.tensor(padding, device=device) if any(padding) else None
        self._cache = self._model.new_cache(len(self._texts), capacity, padded)
        self._feed(torch.tensor(tokens, device=device))

    def _feed(self, tokens: Tensor) -> None:
        self.logits = self._model.head(self._model.backbone(tokens, self._cache)[:, -1])  # (B, V)

    @torch.inference_mode()
    def append(self, tokens: Sequence[int]) -> None:
        """Adds one token to each text, and renews `logits`."""
        context = self._model.config.context_length
        for row, token in enumerate(tokens):
            text = [*self._texts[row], token]
            self._texts[row] = text if len(text) <= context else text[-(context // 2) :]
        if self._cache.length < self._cache.capacity:
            self._feed(torch.tensor(tokens, device=self.logits.device).unsqueeze(1))
        else:
            self._read()

    @torch.inference_mode()
    def keep(self, rows: list[int]) -> None:
        """Goes on with these rows only."""
        self._texts = [self._texts[row] for row in rows]
        self.logits = self.logits[rows]
        self._cache.select(rows)


def _stream(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    is_over: IsOver | None,
) -> Iterator[tuple[int, int]]:
    """Yields (row, token) as they are chosen; a row leaves the batch at its stop token, or when it is over."""
    if max_new_tokens < 1:
        return
    rows = list(range(len(prompts)))
    generators = [torch.Generator().manual_seed(sampling.seed + row) for row in rows]
    texts: list[list[int]] = [[] for _ in prompts]
    decoder = Decoder(model, prompts, max_new_tokens)
    for step in range(1, max_new_tokens + 1):
        tokens = sampling.choose(decoder.logits, [generators[row] for row in rows])
        alive = [index for index, token in enumerate(tokens) if token not in sampling.stop]
        for index in alive:
            texts[rows[index]].append(tokens[index])
            yield rows[index], tokens[index]
        if is_over is not None:
            alive = [index for index in alive if not is_over(texts[rows[index]])]
        if not alive or step == max_new_tokens:
            return
        if len(alive) < len(rows):
            rows = [rows[index] for index in alive]
            decoder.keep(alive)
        decoder.append([tokens[index] for index in alive])


def generate(
    model: Transformer,
    tokens: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    is_over: IsOver | None = None,
) -> Iterator[int]:
    """Continues `tokens`, yielding each new token as it is chosen.

    `is_over` is asked after each token with all new tokens so far; True ends the text, whose last token is kept.

    Raises:
        ValueError: at the first token asked for: for an empty prompt, an unknown token id, or a model whose logits are
            NaN or infinite.
    """
    for _, token in _stream(model, [tokens], max_new_tokens, sampling, is_over):
        yield token


def generate_batch(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    is_over: IsOver | None = None,
) -> list[list[int]]:
    """New tokens of each prompt, all computed together.

    Row r equals `generate` of prompt r alone with the seed `sampling.seed + r`.
    """
    texts: list[list[int]] = [[] for _ in prompts]
    if prompts:
        for row, token in _stream(model, prompts, max_new_tokens, sampling, is_over):
            texts[row].append(token)
    return texts

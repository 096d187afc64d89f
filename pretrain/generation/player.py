"""Decodes many texts side by side: rows join and leave while others decode, each with its own settings.

One engine for `replica sample`, evaluation, rollouts and the server. What a row gives does not depend on its
neighbours: it has its own positions, its own noise and its own end (results differ by rounding alone). A prompt is read
once for all its samples.

When a text outgrows the context, the model goes on from its last `context_length // 2` tokens, read again. Of a prompt
longer than the context, the last `context_length` tokens are read.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pretrain.generation.decode import Decoder, Step, StepWrapper
from pretrain.generation.noise import key_uniforms, noise_keys
from pretrain.generation.row_cache import RowCache
from pretrain.generation.sampling import NO_PROBABILITIES, PLAIN, Chooser, Sampling
from pretrain.model.transformer import Transformer

# Told the new tokens of a text after each one; says whether the text is over.
IsOver = Callable[[Sequence[int]], bool]
# Told the new tokens of a text after each one; gives tokens that must follow, such as the result of a tool.
Forced = Callable[[list[int]], Sequence[int] | None]
Finish = Literal["stop", "length"]
_READ_TOKENS = 8192  # of prompts, in one forward pass: activations stay small beside the cache
_NOISE = 64  # numbers of a row that are computed at a time


@dataclass(frozen=True)
class Request:
    """A prompt to continue.

    Attributes:
        prompt: token ids, at least one.
        max_new_tokens: the most tokens of a continuation, those included that are forced.
        sampling: how tokens are chosen, and which end the text.
        samples: how many continuations.
        keys: of the noise of each sample (`pretrain.generation.noise.noise_keys`); None: from `sampling.seed` and the
            number of the sample.
        is_over: asked after each token with all new tokens so far; True ends the text, whose last token is kept.
        forced: asked likewise; tokens that it returns follow next. They are not drawn and take no noise.
        top_log_probs: gives `Event.raw_log_prob`, and so many of the most likely tokens beside it; None: neither.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: Sampling = PLAIN
    samples: int = 1
    keys: Sequence[int] | None = None
    is_over: IsOver | None = None
    forced: Forced | None = None
    top_log_probs: int | None = None


class Event(NamedTuple):
    """A new token of a row.

    Attributes:
        row: the row's number, from `Player.add`.
        token: its id; the id that ended the text, where one did.
        log_prob: of the token in the distribution that it was drawn from; 0 at temperature 0 and for forced tokens.
        finished: why the row ended with this token: "stop" for a stop id or `is_over`, "length" for `max_new_tokens`.
        forced: it was not drawn.
        raw_log_prob: of the token at temperature 1 among all tokens of the vocabulary, where it was asked for.
        top: the most likely tokens of that distribution with their log-probabilities, where they were asked for.
    """

    row: int
    token: int
    log_prob: float
    finished: Finish | None = None
    forced: bool = False
    raw_log_prob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Answer:
    """A whole continuation.

    Attributes:
        ids: all new tokens, the stop id included that ended the text.
        log_probs: of each, as in `Event`.
        forced: of each, whether it was forced.
        finish: as `Event.finished`.
    """

    ids: list[int]
    log_probs: list[float]
    forced: list[bool]
    finish: Finish


def check_request(request: Request, vocab_size: int) -> None:
    """Raises `ValueError` for an empty prompt, an id beyond `vocab_size`, nothing to generate, and too few keys."""
    prompt = request.prompt
    if not prompt:
        raise ValueError("a prompt is empty; give at least one token, such as the end-of-text token")
    if not 0 <= min(prompt) <= max(prompt) < vocab_size:
        raise ValueError(
            f"a prompt has token ids {min(prompt)} to {max(prompt)}, but the model's vocabulary has "
            f"{vocab_size}; encode it with the tokenizer the model was trained with"
        )
    if request.max_new_tokens < 1 or request.samples < 1:
        raise ValueError(
            f"max_new_tokens {request.max_new_tokens} and samples {request.samples}: give 1 or more of both"
        )
    if request.keys is not None and len(request.keys) != request.samples:
        raise ValueError(f"{len(request.keys)} keys for {request.samples} samples; give one for each")


@dataclass
class _Row:
    number: int
    request: Request
    key: np.ndarray  # uint64, a scalar
    text: list[int]  # what the model has read or reads next, at most a context
    new: list[int] = field(default_factory=list)
    pending: deque[int] = field(default_factory=deque)  # forced tokens still to come
    drawn: int = 0
    noise: list[float] = field(default_factory=list)  # from `drawn` on, last first

    def uniform(self) -> float:
        """The number that the next token is drawn by; the most likely token needs none."""
        if not self.request.sampling.temperature:
            return 0.0
        if not self.noise:
            ahead = np.arange(self.drawn, self.drawn + _NOISE)
            self.noise = key_uniforms(self.key, ahead)[::-1].tolist()
        return self.noise[-1]


class Player:
    """Decodes requests. Use it from one thread, and leave the model's weights alone while rows play.

    Args:
        model: in eval mode.
        max_rows: rows that decode together; further ones wait for a place. None: no bound.
        wrap: makes another step of the decode step, such as `pretrain.generation.decode.compiled`. Its shapes never
            change: always `max_rows` rows and a whole context, whoever plays.
    """

    def __init__(self, model: Transformer, max_rows: int | None = None, wrap: StepWrapper | None = None) -> None:
        self._model, self._max_rows = model, max_rows
        self._decoder = Decoder(model)
        if wrap is not None and max_rows is None:
            raise ValueError("a decode step of fixed shapes needs max_rows; give the number of rows")
        self._fixed: Step | None = None if wrap is None else wrap(self._decoder)
        self._cache = RowCache(model, None if wrap is None else max_rows)
        self._waiting: deque[list[_Row]] = deque()
        self._rows: list[_Row] = []  # row i has place i of the cache
        self._next_number = 0
        self._chooser: Chooser | None = None  # of the present rows

    @property
    def busy(self) -> bool:
        """Tells whether any row waits or decodes."""
        return bool(self._rows or self._waiting)

    def add(self, request: Request) -> list[int]:
        """Lets the samples of a request join at the next step; returns the numbers of their rows.

        Raises:
            ValueError: for an empty prompt, an unknown token id, nothing to generate, or more samples than rows.
        """
        check_request(request, self._model.vocab_size)
        if self._max_rows is not None and request.samples > self._max_rows:
            raise ValueError(
                f"{request.samples} samples need more rows than the {self._max_rows} there are; ask for fewer"
            )
        keys = request.keys
        if keys is None:
            seeds = noise_keys(request.sampling.seed, "text", [0] * request.samples, range(request.samples))
        else:
            seeds = np.asarray(keys, dtype=np.uint64)
        text = list(request.prompt[-self._model.config.context_length :])
        rows = [
            _Row(self._next_number + sample, request, seeds[sample], list(text)) for sample in range(request.samples)
        ]
        self._next_number += request.samples
        self._waiting.append(rows)
        return [row.number for row in rows]

    @torch.inference_mode()
    def cancel(self, row: int) -> None:
        """Takes a row out; its place is free. A row that has ended, or never was, is left alone."""
        for place, one in enumerate(self._rows):
            if one.number == row:
                self._leave([place])
                return
        self._waiting = deque(kept for rows in self._waiting if (kept := [one for one in rows if one.number != row]))

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Gives every row its next token. Rows that wait join first; rows that end leave.

        Raises:
            ValueError: when the model's logits are NaN or infinite.
        """
        return self._choose(self._logits()) if self.busy else []

    def run(self, requests: Sequence[Request]) -> list[Answer]:
        """Continues all requests to their ends: an answer for each sample, in order. Nobody else's rows may play."""
        assert not self.busy, "rows of somebody else are playing; step them to their ends first"
        numbers = [number for request in requests for number in self.add(request)]
        answers = {number: Answer([], [], [], "length") for number in numbers}
        for event in self.events():
            answer = answers[event.row]
            answer.ids.append(event.token)
            answer.log_probs.append(event.log_prob)
            answer.forced.append(event.forced)
            if event.finished == "stop":
                answers[event.row] = Answer(answer.ids, answer.log_probs, answer.forced, "stop")
        return [answers[number] for number in numbers]

    def events(self) -> Iterator[Event]:
        """Steps until nothing is left to do."""
        while self.busy:
            yield from self.step()

    # ------------------------------------------------------------------------------------------------------- one step
    def _logits(self) -> Tensor:
        """Logits (R, V) of the next token of every row, those that join included."""
        parts = [self._decode()] if self._rows else []
        parts += self._join()
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode(self) -> Tensor:
        """Logits of the rows that play, after their newest token."""
        context = self._model.config.context_length
        full = [place for place, row in enumerate(self._rows) if len(row.text) > context]
        for place in full:
            self._rows[place].text = self._rows[place].text[-(context // 2) :]
        logits = None
        if len(full) < len(self._rows):
            # Rows that are read again take part as well, so that the rest need not move; what they write is replaced.
            logits = self._feed()
        if full:
            texts = [self._rows[place].text for place in full]
            again = self._cache.read(texts, [[place] for place in full])
            if logits is None:
                return again
            logits[torch.tensor(full, device=logits.device)] = again
        assert logits is not None
        return logits

    def _feed(self) -> Tensor:
        tokens, lengths = [row.text[-1] for row in self._rows], [len(row.text) - 1 for row in self._rows]
        if self._fixed is not None:
            assert self._max_rows is not None
            free = [0] * (self._max_rows - len(self._rows))  # places that nobody has compute as well, unread
            inputs = self._upload(np.array([tokens + free, lengths + free]))
            keys, values = self._cache.view(self._max_rows, self._model.config.context_length)
            return self._fixed(inputs[0], inputs[1], keys, values)[: len(self._rows)]
        inputs = self._upload(np.array([tokens, lengths]))
        span = max(lengths) + 1
        keys, values = self._cache.view(len(self._rows), span)
        even = min(lengths) + 1 == span
        return self._decoder(inputs[0], inputs[1], keys, values, span - 1 if even else None)

    def _upload(self, values: np.ndarray) -> Tensor:
        """Numbers on the model's device, without a wait for it."""
        device, host = self._model.embed.weight.device, torch.from_numpy(values)
        return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)

    def _join(self) -> list[Tensor]:
        """Reads the prompts of rows for which there is a place: their logits, each in the order of the rows."""
        joining: list[list[_Row]] = []
        count = len(self._rows)
        while self._waiting and (self._max_rows is None or count + len(self._waiting[0]) <= self._max_rows):
            joining.append(self._waiting.popleft())
            count += len(joining[-1])
        if not joining:
            return []
        self._chooser = None
        joining.sort(key=lambda rows: len(rows[0].text))  # little padding, whatever the order of arrival
        context = self._model.config.context_length
        longest = max(len(rows[0].text) + rows[0].request.max_new_tokens for rows in joining)
        self._cache.reserve(count, min(context, longest))
        out, start = [], 0
        while start < len(joining):
            stop = start + 1
            while stop < len(joining) and (stop + 1 - start) * len(joining[stop][0].text) <= _READ_TOKENS:
                stop += 1
            part = joining[start:stop]
            places = []
            for rows in part:
                places.append(list(range(len(self._rows), len(self._rows) + len(rows))))
                self._rows.extend(rows)
            out.append(self._cache.read([rows[0].text for rows in part], places))
            start = stop
        return out

    def _choose(self, logits: Tensor) -> list[Event]:
        if self._chooser is None:
            samplings = [row.request.sampling for row in self._rows]
            self._chooser = Chooser(samplings, self._model.vocab_size, logits.device)
        uniforms = [row.uniform() for row in self._rows]
        numbers = self._upload(np.array(uniforms))
        # The one wait for the device in a step.
        tokens, log_probs, sound = self._chooser(logits, numbers).tolist()
        if not all(map(math.isfinite, sound)):
            raise ValueError(NO_PROBABILITIES)
        events, left = [], []
        for place, row in enumerate(self._rows):
            event = self._advance(row, int(tokens[place]), log_probs[place], logits[place])
            events.append(event)
            if event.finished:
                left.append(place)
        if left:
            self._leave(left)
        return events

    def _advance(self, row: _Row, drawn: int, log_prob: float, logits: Tensor) -> Event:
        """Gives a row its token: the one that was drawn, or the next that is forced."""
        request, forced = row.request, bool(row.pending)
        if forced:
            token, log_prob = row.pending.popleft(), 0.0
        else:
            token = drawn
            row.drawn += 1
            if row.noise:
                row.noise.pop()
        row.text.append(token)
        row.new.append(token)
        finished: Finish | None = None
        if not forced and token in request.sampling.stop:
            finished = "stop"
        else:
            if request.forced is not None and not row.pending:
                row.pending.extend(request.forced(row.new) or ())
            if request.is_over is not None and request.is_over(row.new):
                finished = "stop"
            elif len(row.new) >= request.max_new_tokens:
                finished = "length"
        if request.top_log_probs is None or forced:
            return Event(row.number, token, log_prob, finished, forced)
        raw = logits[: request.sampling.vocab_size].float().log_softmax(dim=-1)
        best = raw.topk(min(request.top_log_probs, len(raw)))
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return Event(row.number, token, log_prob, finished, forced, raw[token].item(), top)

    def _leave(self, places: list[int]) -> None:
        """Frees these places: the last rows move into them."""
        self._chooser = None
        for place in sorted(places, reverse=True):
            last = self._rows.pop()
            if place < len(self._rows):
                self._rows[place] = last
                self._cache.move(len(self._rows), place, len(last.text))

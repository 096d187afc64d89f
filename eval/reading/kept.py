"""Asks a reader once: answers that a journal knows are taken from there, and new ones are written to it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np

from eval.reading.journal import Journal
from eval.reading.reader import Reader
from eval.reading.windows import Report, Score, Window
from pretrain.generation.player import Answer, Request
from pretrain.parallel.lockstep import ALONE, Lockstep

Request_ = TypeVar("Request_")
Given = TypeVar("Given")
# Requests are asked in portions, and the answers of a portion are kept together. At the end of a portion the last batch
# is not full, and few answers are still decoded. So a portion should last much longer than a batch.
_PORTION_SECONDS = {"score": 10.0, "generate": 60.0, "rewards": 10.0}
_FIRST_TOKENS = 16_384  # of the first portion, for each rank
_FIRST_FACTORS = {"score": 1, "generate": 4, "rewards": 1}  # most answers end before their longest length
_GROWTH = 4.0


class KeptReader:
    """Reads through a journal. Without an open part of the journal, it only passes requests on.

    Args:
        reader: answers what the journal does not know.
        journal: open for the part under way.
        ranks: the ranks that ask together.
        first_tokens: tokens of the first portion, for each rank. Later ones follow from the time that it took.
    """

    def __init__(
        self, reader: Reader, journal: Journal, ranks: Lockstep = ALONE, first_tokens: int = _FIRST_TOKENS
    ) -> None:
        self._reader, self._journal, self._ranks = reader, journal, ranks
        self.context_length, self.vocab_size, self.precision = (
            reader.context_length,
            reader.vocab_size,
            reader.precision,
        )
        self._tokens = {kind: float(factor * first_tokens * ranks.count) for kind, factor in _FIRST_FACTORS.items()}

    def score(self, windows: Sequence[Window], report: Report | None = None) -> list[Score]:
        """See `Reader.score`."""
        texts = [_bytes_of_window(window) for window in windows]
        asked = _Asked("score", windows, texts, [len(window.tokens) for window in windows])
        return self._answers(asked, self._reader.score, _Form(lambda score: list(astuple(score)), _score), report)

    def generate(self, requests: Sequence[Request], report: Report | None = None) -> list[Answer]:
        """See `Reader.generate`. Stop rules are code: they must follow from what the journal belongs to."""

        def generate(part: Sequence[Request], report: Report | None) -> list[list[Answer]]:
            answers = iter(self._reader.generate(part, report))
            return [[next(answers) for _ in range(request.samples)] for request in part]

        texts = [_bytes_of_request(request) for request in requests]
        costs = [len(request.prompt) + request.samples * request.max_new_tokens for request in requests]
        form = _Form[list[Answer]](lambda answers: [list(vars(one).values()) for one in answers], _answers)
        found = self._answers(_Asked("generate", requests, texts, costs), generate, form, report)
        return [answer for answers in found for answer in answers]

    def rewards(self, rows: Sequence[Sequence[int]], report: Report | None = None) -> list[float]:
        """See `Reader.rewards`."""
        texts = [np.asarray(row, dtype=np.int64).tobytes() for row in rows]
        asked = _Asked("rewards", rows, texts, [len(row) for row in rows])
        return self._answers(asked, self._reader.rewards, _Form(float, float), report)

    def _answers(
        self,
        asked: _Asked[Request_],
        ask: Callable[[Sequence[Request_], Report | None], list[Given]],
        form: _Form[Given],
        report: Report | None,
    ) -> list[Given]:
        """Answers requests from the journal, and the others by `ask` in portions that the journal then keeps."""
        if not self._journal.is_open:
            return ask(asked.requests, report)
        keys = asked.keys(self._journal.next_call())
        known = {index: self._journal.known(key) for index, key in enumerate(keys)}
        found = {index: form.decode(kept) for index, kept in known.items() if kept is not None}
        waiting = [index for index in asked.order() if index not in found]
        while waiting:
            portion = self._portion(asked, waiting)
            began = time.monotonic()
            part = [asked.requests[index] for index in portion]
            answers = ask(part, _after(len(found), len(keys), report))
            self._journal.write({keys[index]: form.encode(one) for index, one in zip(portion, answers, strict=True)})
            found.update(zip(portion, answers, strict=True))
            waiting = waiting[len(portion) :]
            if waiting:
                self._pace(asked.kind, time.monotonic() - began)
        if report is not None and keys:
            report(len(keys), total=len(keys))
        return [found[index] for index in range(len(keys))]

    def _portion(self, asked: _Asked[Any], waiting: Sequence[int]) -> Sequence[int]:
        """Returns the first of the waiting requests that make a portion together: one, at least."""
        ends = np.cumsum([asked.tokens[index] for index in waiting])
        return waiting[: max(1, int(np.searchsorted(ends, self._tokens[asked.kind], side="right")))]

    def _pace(self, kind: str, seconds: float) -> None:
        """Fits the next portion to the time that this one took, on all ranks alike."""
        took = self._ranks.of_main(lambda: seconds, "pace")
        factor = _PORTION_SECONDS[kind] / max(took, 1e-3)
        self._tokens[kind] *= min(max(factor, 1 / _GROWTH), _GROWTH)


@dataclass(frozen=True)
class _Asked(Generic[Request_]):
    """Requests of one kind, and what tells them apart: the bytes of each, and its tokens."""

    kind: str
    requests: Sequence[Request_]
    texts: Sequence[bytes]
    tokens: Sequence[int]

    def order(self) -> list[int]:
        """Returns the order of asking. Windows that begin alike follow one another: a portion reads that once."""
        numbers = range(len(self.requests))
        if self.kind != "score":
            return list(numbers)
        return sorted(numbers, key=lambda index: self.texts[index])

    def keys(self, call: int) -> list[str]:
        """Returns the keys of the requests: the number of the call, the place in it, and a digest."""
        digests = (hashlib.blake2b(text, digest_size=8).hexdigest() for text in self.texts)
        return [f"{call}.{index}.{digest}" for index, digest in enumerate(digests)]


@dataclass(frozen=True)
class _Form(Generic[Given]):
    """How an answer is written as JSON."""

    encode: Callable[[Given], Any]
    decode: Callable[[Any], Given]


def _score(kept: Any) -> Score:
    return Score(*kept)


def _answers(kept: Any) -> list[Answer]:
    return [Answer(*one) for one in kept]


def _bytes_of_window(window: Window) -> bytes:
    weights = b"" if window.weights is None else window.weights.tobytes()
    return window.tokens.tobytes() + weights + f" {window.scored}".encode()


def _bytes_of_request(request: Request) -> bytes:
    sampling = replace(request.sampling, stop=sorted(request.sampling.stop))
    keys = None if request.keys is None else list(map(int, request.keys))
    settings = repr([request.max_new_tokens, sampling, request.samples, keys, request.top_log_probs])
    return settings.encode() + np.asarray(request.prompt, dtype=np.int64).tobytes()


def _after(done: int, count: int, report: Report | None) -> Report | None:
    """Reports the progress of a portion as that of all requests."""
    if report is None:
        return None
    whole = report

    def update(completed: float, note: str = "", total: float | None = None) -> None:
        whole(done + completed, note, count)

    return update

"""Defines the seam between scores and models: every log-likelihood, answer and reward comes from a `Reader`.

So no task and no statistic knows on how many devices, in which batches or in which order a model reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from eval.reading.scoring import BatchSize, scored_windows
from eval.reading.windows import Report, Score, Window
from pretrain.generation.player import Answer, Player, Request
from pretrain.model.transformer import Transformer

# Scores rows of tokens: prompt, answer and its end.
RowScorer = Callable[[Sequence[Sequence[int]]], Sequence[float]]
_REWARDED_ROWS = 32  # rows that a reward model scores between two reports
# Tokens of a forward pass. On a CPU more do not fit the caches of its cores, and are slower (docs/lab-notes.md).
_PASS_TOKENS = {"cpu": 1024, "cuda": 32_768}
# Answers that decode together.
_DECODED_ROWS = {"cpu": 64, "cuda": 256}
_REPORTED_TOKENS = 256  # of all answers, between two reports

_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Reader(Protocol):
    """Answers requests. Every answer has the place of its request.

    Attributes:
        context_length: maximum number of tokens in a forward pass.
        vocab_size: number of ids of the tokenizer. Padding rows of the embedding have no probability.
        precision: `fp32` or `bf16`, of the matrix products.
    """

    @property
    def context_length(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def precision(self) -> str: ...

    def score(self, windows: Sequence[Window], report: Report | None = None) -> list[Score]:
        """Returns the score of each window.

        Raises:
            ValueError: when the model's logits are NaN or infinite.
        """
        ...

    def generate(self, requests: Sequence[Request], report: Report | None = None) -> list[Answer]:
        """Returns an answer for each sample of each request, the samples of a request side by side.

        Raises:
            ValueError: for a request that the model cannot continue, and when its logits are NaN or infinite.
        """
        ...

    def rewards(self, rows: Sequence[Sequence[int]], report: Report | None = None) -> list[float]:
        """Returns what a reward model gives each row of token ids.

        Raises:
            ValueError: when the model is no reward model, or a row is empty or longer than the context.
        """
        ...


def sizes_for(model: Transformer, batch_size: int | None, batch_tokens: int | None) -> tuple[BatchSize, int]:
    """Returns the size of a forward pass and the number of answers that decode together, as set or for the device."""
    device = model.embed.weight.device.type
    tokens = batch_tokens or _PASS_TOKENS.get(device, _PASS_TOKENS["cpu"])
    return BatchSize(tokens, batch_size), batch_size or _DECODED_ROWS.get(device, _DECODED_ROWS["cpu"])


def precision_of(model: Transformer) -> str:
    """Returns `Reader.precision` of a model."""
    return _PRECISIONS[model.embed.weight.dtype]


class LocalReader:
    """Reads with a model of this process.

    Args:
        model: in evaluation mode.
        vocab_size: as in `Reader`.
        batch_size: most rows of a forward pass, and answers that decode together; None: chosen for the device. No size
            changes the results, except for rounding of matrix products.
        rewards: scores rows of tokens, of a reward model.
        batch_tokens: most tokens of a forward pass, padding included; None: chosen for the device.
    """

    def __init__(
        self,
        model: Transformer,
        vocab_size: int,
        batch_size: int | None = None,
        rewards: RowScorer | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        self._model, self._rewards = model, rewards
        self._size, self._decoded_rows = sizes_for(model, batch_size, batch_tokens)
        self.context_length, self.vocab_size = model.config.context_length, vocab_size
        self.precision = precision_of(model)

    def score(self, windows: Sequence[Window], report: Report | None = None) -> list[Score]:
        """See `Reader.score`. What windows begin with alike is read once."""
        scores: dict[int, Score] = {}
        for done in scored_windows(self._model, windows, self.vocab_size, self._size):
            scores.update(done)
            if report is not None:
                report(len(scores), total=len(windows))
        return [scores[number] for number in range(len(windows))]

    def generate(self, requests: Sequence[Request], report: Report | None = None) -> list[Answer]:
        """See `Reader.generate`. Where one answer ends, the next takes its place."""
        samples = max((request.samples for request in requests), default=1)
        player = Player(self._model, max_rows=max(self._decoded_rows, samples))
        # The longest first, so that the cache is as large as it must be from the beginning.
        order = sorted(range(len(requests)), key=lambda index: len(requests[index].prompt), reverse=True)
        numbers = {index: player.add(requests[index]) for index in order}
        answers = {row: Answer([], [], [], "length") for rows in numbers.values() for row in rows}
        done = 0
        for number, event in enumerate(player.events()):
            answer = answers[event.row]
            answer.ids.append(event.token)
            answer.log_probs.append(event.log_prob)
            answer.forced.append(event.forced)
            if event.finished:
                answers[event.row] = Answer(answer.ids, answer.log_probs, answer.forced, event.finished)
                done += 1
            # Between the ends of long answers too: a report is a sign of life.
            if report is not None and (event.finished or number % _REPORTED_TOKENS == 0):
                report(done, total=len(answers))
        return [answers[row] for index in range(len(requests)) for row in numbers[index]]

    def rewards(self, rows: Sequence[Sequence[int]], report: Report | None = None) -> list[float]:
        """See `Reader.rewards`."""
        if self._rewards is None:
            raise ValueError("the model is no reward model; score preference sets with a stage of kind `reward`")
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        found = [0.0] * len(rows)
        for start in range(0, len(order), _REWARDED_ROWS):
            indices = order[start : start + _REWARDED_ROWS]
            for index, value in zip(indices, self._rewards([rows[index] for index in indices]), strict=True):
                found[index] = float(value)
            if report is not None:
                report(start + len(indices), total=len(rows))
        return found

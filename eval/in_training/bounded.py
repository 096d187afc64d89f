"""Bounds what an evaluation during training costs, in items and in seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from configs.schema.recipe import Recipe
from data_prep.decontamination.evaluation_sets import SetText
from eval.reading.reader import Reader
from eval.reading.windows import Report, Score, Window
from pretrain.generation.player import Answer, Request
from pretrain.parallel.lockstep import Lockstep

_RESAMPLES = 200  # for intervals: enough to see whether one holds chance
_SAMPLED_TOKENS = 64
_FIRST_REQUESTS = 32  # of a rank, before the time of one is known
_CHECKS = 20  # of the time, in an evaluation that takes all of it

Asked = TypeVar("Asked")
Found = TypeVar("Found")


class OutOfTime(ValueError):
    """The evaluation has taken its time."""


class AskedToStop(ValueError):
    """A rank got a signal, and training is to be saved soon."""


def bounded_recipe(recipe: Recipe) -> Recipe:
    """Returns the recipe with an evaluation of at most `train.validation.evaluation.max_items` items each."""
    most, section = recipe.train.validation.evaluation.max_items, recipe.evaluation

    def least(value: int | None) -> int:
        return most if value is None else min(most, value)

    def limited(items: Sequence[Any], key: str) -> list[Any]:
        return [item.model_copy(update={key: least(getattr(item, key))}) for item in items]

    samples, benchmarks = section.samples, section.benchmarks
    update: dict[str, Any] = {
        "perplexity": limited(section.perplexity, "max_documents"),
        "translation": limited(section.translation, "max_items"),
        "information": limited(section.information, "max_items"),
        "summarization": limited(limited(section.summarization, "max_items"), "information_items"),
        "chat": limited(section.chat, "max_items"),
        "benchmarks": benchmarks.model_copy(update={"tasks": limited(benchmarks.entries, "limit")}),
        "samples": samples.model_copy(
            update={"prompts": samples.prompts[:most], "max_new_tokens": min(samples.max_new_tokens, _SAMPLED_TOKENS)}
        ),
        "bootstrap_samples": min(section.bootstrap_samples, _RESAMPLES),
    }
    return recipe.model_copy(update={"evaluation": section.model_copy(update=update)})


def bounded_texts(documents: Sequence[SetText], most: int) -> list[SetText]:
    """Returns the first documents of a set, as many as hold `most` bytes; the last one is cut."""
    kept, left = [], most
    for one in documents:
        if left <= 0:
            break
        content = one.text.encode()
        kept.append(one if len(content) <= left else replace(one, text=content[:left].decode("utf-8", "ignore")))
        left -= len(content)
    return kept


class BoundedReader:
    """Reads in slices, and looks between them whether there is time left: the same decision on all ranks.

    Args:
        reader: answers on all ranks.
        lockstep: the ranks.
        seconds: time of the evaluation, by the clock of rank 0.
        stop: gives the signal that this rank got, or 0.
        between: called before each slice.
    """

    def __init__(
        self,
        reader: Reader,
        lockstep: Lockstep,
        seconds: float,
        stop: Callable[[], int],
        between: Callable[[], None] = lambda: None,
    ) -> None:
        self._reader, self._lockstep, self._stop, self._between = reader, lockstep, stop, between
        self._ends, self._slice_seconds = time.monotonic() + seconds, seconds / _CHECKS
        self.context_length, self.vocab_size, self.precision = (
            reader.context_length,
            reader.vocab_size,
            reader.precision,
        )

    def check(self) -> None:
        """Raises `OutOfTime` or `AskedToStop`, on all ranks or on none; every rank must call it."""
        self._agreed(0)

    def score(self, windows: Sequence[Window], report: Report | None = None) -> list[Score]:
        """See `Reader.score`."""
        return self._sliced(windows, lambda part: self._reader.score(part), report)

    def generate(self, requests: Sequence[Request], report: Report | None = None) -> list[Answer]:
        """See `Reader.generate`."""
        return self._sliced(requests, lambda part: self._reader.generate(part), report)

    def rewards(self, rows: Sequence[Sequence[int]], report: Report | None = None) -> list[float]:
        """See `Reader.rewards`."""
        return self._sliced(rows, lambda part: self._reader.rewards(part), report)

    def _sliced(
        self, asked: Sequence[Asked], read: Callable[[Sequence[Asked]], list[Found]], report: Report | None
    ) -> list[Found]:
        found: list[Found] = []
        start, size = 0, _FIRST_REQUESTS * self._lockstep.count
        while start < len(asked):
            size = self._agreed(size)
            began = time.monotonic()
            found += read(asked[start : start + size])
            start += size
            # Few slices: each ends with a batch that is not full.
            size = max(size, int(size * min(8.0, self._slice_seconds / max(time.monotonic() - began, 1e-6))))
            if report is not None:
                report(min(start, len(asked)), total=len(asked))
        return found

    def _agreed(self, size: int) -> int:
        """Rank 0's size of the next slice."""
        own = time.monotonic() >= self._ends, size, self._stop()
        said = self._lockstep.exchange(own, "time left")
        if any(stop for _, _, stop in said):
            raise AskedToStop("training was asked to stop")
        over, size, _ = said[0]
        if over:
            raise OutOfTime("no time left")
        self._between()
        return size

"""What bounds an evaluation during training: items, bytes, and seconds that all ranks count alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.schema.evaluation import Benchmarks, BenchmarkTask, PerplexitySet
from data_prep.decontamination.evaluation_sets import SetText
from eval.in_training.bounded import AskedToStop, BoundedReader, OutOfTime, bounded_recipe, bounded_texts
from eval.reading.windows import Score, Window
from pretrain.parallel.lockstep import Lockstep, OtherRankFailed
from pretrain.parallel.ranks import Ranks
from tests.parts.training_run import as_ranks, tiny_recipe

ITEM = PerplexitySet(name="held", path="held.jsonl")


class Counting:
    """Gives each window its first token as nats; counts what it is asked."""

    context_length, vocab_size, precision = 8, 100, "fp32"

    def __init__(self, at_call: Callable[[int], None] = lambda call: None) -> None:
        self.asked: list[int] = []
        self._at_call = at_call

    def score(self, windows: Sequence[Window], report: Any = None) -> list[Score]:
        self.asked.append(len(windows))
        self._at_call(len(self.asked))
        return [Score(float(window.tokens[0]), False) for window in windows]

    def generate(self, requests: Any, report: Any = None) -> Any: ...
    def rewards(self, rows: Any, report: Any = None) -> Any: ...


WINDOWS = [Window(np.array([number, 0]), 1) for number in range(500)]


def test_slices_keep_the_order_and_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice should take a twentieth of the time: after 32 windows in a second of 100, some 160."""
    clock = [0.0]
    monkeypatch.setattr("eval.in_training.bounded.time.monotonic", lambda: clock[0])

    def work(call: int) -> None:
        clock[0] += reader.asked[-1] / 32

    reader, told = Counting(work), list[float]()
    bounded = BoundedReader(reader, Lockstep(), 100.0, lambda: 0)
    found = bounded.score(WINDOWS, lambda done, note="", total=None: told.append(done))
    assert [score.nats for score in found] == list(range(500))
    assert reader.asked == [32, 160, 160, 148] and told == [32, 192, 352, 500]


def test_all_ranks_end_where_the_clock_of_rank_0_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others' clocks say otherwise, and the request after that is asked of none."""

    def on(ranks: Ranks, gather: Callable[[Any], list[Any]]) -> Any:
        lockstep = Lockstep(ranks.rank, ranks.count, gather)
        reader = Counting()
        bounded = BoundedReader(reader, lockstep, 1000.0 if ranks.rank else 0.0, lambda: 0)
        with pytest.raises(OutOfTime), lockstep.together("a part"):
            bounded.score(WINDOWS)
        with lockstep.together("the next part"):
            return reader.asked, lockstep.exchange(ranks.rank)

    assert as_ranks(2, on) == [([], [0, 1]), ([], [0, 1])]


def test_a_signal_of_one_rank_ends_it_on_all() -> None:
    def on(ranks: Ranks, gather: Callable[[Any], list[Any]]) -> Any:
        lockstep = Lockstep(ranks.rank, ranks.count, gather)
        with pytest.raises(AskedToStop), lockstep.together("a part"):
            BoundedReader(Counting(), lockstep, 100.0, lambda: 15 * ranks.rank).score(WINDOWS)
        return True

    assert as_ranks(2, on) == [True, True]


def test_a_rank_that_fails_before_it_reads_ends_the_part_on_all() -> None:
    """No rank waits for an answer of one that has given up; the next part is scored by all."""

    def on(ranks: Ranks, gather: Callable[[Any], list[Any]]) -> Any:
        lockstep, reader = Lockstep(ranks.rank, ranks.count, gather), Counting()
        bounded = BoundedReader(reader, lockstep, 100.0, lambda: 0)
        with pytest.raises(ValueError, match="gone") as failed, lockstep.together("a part"):
            if ranks.rank:
                raise ValueError("the set is gone")
            bounded.score(WINDOWS)
        with lockstep.together("the next part"):
            found = bounded.score(WINDOWS[:3])
        return type(failed.value), [score.nats for score in found]

    assert as_ranks(2, on) == [(OtherRankFailed, [0.0, 1.0, 2.0]), (ValueError, [0.0, 1.0, 2.0])]


def test_texts_are_cut_at_the_bytes_that_are_left() -> None:
    documents = [SetText(text, text) for text in ("abc", "déf", "ghi")]
    assert [one.text for one in bounded_texts(documents, 5)] == ["abc", "d"], "no half of a character"
    assert bounded_texts(documents, 100) == documents


def test_items_are_as_few_as_both_settings_say(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, tmp_path, validation={"evaluation": {"max_items": 7}})
    tasks = ["copa", BenchmarkTask(task="piqa", limit=5)]
    section = recipe.evaluation.model_copy(
        update={
            "perplexity": [ITEM, ITEM.model_copy(update={"name": "few", "max_documents": 3})],
            "benchmarks": Benchmarks(tasks=tasks, limit=200),
        }
    )
    bounded = bounded_recipe(recipe.model_copy(update={"evaluation": section})).evaluation
    assert [item.max_documents for item in bounded.perplexity] == [7, 3]
    assert [entry.limit for entry in bounded.benchmarks.entries] == [7, 5]

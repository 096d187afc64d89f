"""Chooses the items of one part that are worth looking at: the worst, those that changed, and scores by length."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.items.item import Item
from eval.items.table import ItemTable
from eval.results import Results

BANDS = 5  # of length, with as many items each
# Metrics of the whole corpus whose items can be judged alone, the fairer first: BLEU of one sentence is often 0.
_CORPUS = ("chrf", "bleu")
_LOWER_IS_BETTER = ("bits_per_byte", "nats_per_", "perplexity")


@dataclass(frozen=True)
class Metric:
    """The metric by which items are ordered.

    Attributes:
        name: the rest of a score's name, such as `acc`.
        higher: higher values are better.
        corpus: its items have sufficient statistics.
        bounded: an item can be as good as possible; bits have no such bound.
    """

    name: str
    higher: bool
    corpus: bool = False
    bounded: bool = True

    def value(self, item: Item | None) -> float | None:
        """Returns the metric of one item; None where it has no such score."""
        return None if item is None else self.score([item])

    def perfect(self, value: float) -> bool:
        """Tells whether no item can be better: a right answer, a translation that is the reference."""
        return self.higher and self.bounded and value >= (100 if self.corpus or "rouge" in self.name else 1)

    def score(self, items: Sequence[Item]) -> float | None:
        """Returns the metric over some items, from their sums; None where they have no such score."""
        if self.corpus:
            rows = [item.statistics[self.name] for item in items if self.name in item.statistics]
            return _corpus_score(self.name, np.array(rows).sum(axis=0).tolist()) if rows else None
        pairs = [item.measures[self.name] for item in items if self.name in item.measures]
        below = sum(pair[1] for pair in pairs)
        return sum(pair[0] for pair in pairs) / below if below else None


def _corpus_score(name: str, sums: list[float]) -> float:
    from sacrebleu.metrics import BLEU, CHRF

    # The tokenizer has no part in a score from statistics.
    metric = CHRF() if name == "chrf" else BLEU(tokenize="none", effective_order=True)
    return float(metric._compute_score_from_stats(sums).score)


@dataclass(frozen=True)
class Judged:
    """An item with its value, and the value of the same item in the other run."""

    item: Item
    value: float
    other: Item | None = None
    before: float | None = None

    @property
    def confidence(self) -> float:
        """Nats by which the chosen option is likelier than the right one, or that the right text alone cost; else 0."""
        item = self.item
        if not item.choices and len(item.log_likelihoods) == 1:
            return -item.log_likelihoods[0]
        if not item.choices or len(item.log_likelihoods) != len(item.choices) or item.reference not in item.choices:
            return 0.0
        right = item.log_likelihoods[item.choices.index(item.reference)]
        return max(item.log_likelihoods) - right


@dataclass(frozen=True)
class Band:
    """Scores of the items of one length, in bytes: `low` to `high`."""

    low: int
    high: int
    n: int
    score: float
    before: float | None


@dataclass(frozen=True)
class ItemChange:
    """What became of the items that both runs have.

    Attributes:
        common, better, worse: numbers of items.
        only_here, only_there: numbers of items that the other run has not.
        most_worse, most_better: items with the largest changes, the largest first.
    """

    common: int
    better: int
    worse: int
    only_here: int
    only_there: int
    most_worse: list[Judged]
    most_better: list[Judged]


@dataclass(frozen=True)
class ItemView:
    """What a page or a terminal shows of a part.

    Attributes:
        part: its name.
        metric: the order of its items; None where no item has a score of its own.
        n: number of items.
        worst: the worst first, without perfect ones; ties by confidence.
        lengths, length_of: scores by length, and of what the length is.
        subjects: task, number of items, score; of a part with several tasks.
        change: against the other run; None without one.
    """

    part: str
    metric: Metric | None
    n: int
    worst: list[Judged]
    lengths: list[Band] = field(default_factory=list)
    length_of: str = ""
    subjects: list[tuple[str, int, float]] = field(default_factory=list)
    change: ItemChange | None = None


def metric_of(table: ItemTable, results: Results, name: str | None = None) -> Metric | None:
    """Returns the metric that items are ordered by: `name`, else the first score of the part that items have."""
    measures, corpus = table.metrics(), table.corpus_metrics()
    judged = [*measures, *(metric for metric in _CORPUS if metric in corpus)]
    chosen = name if name in judged else next(iter(judged), None)
    if chosen is None:
        return None
    kind = table.part.partition("/")[0]
    scores = results.by_name()
    known = (scores.get(f"{kind}/{subject}/{chosen}") for subject in table.subjects)
    score = next((one for one in known if one is not None), None)
    higher = score.higher_is_better if score is not None else not chosen.startswith(_LOWER_IS_BETTER)
    bounded = score is None or not score.unit.startswith("bits")
    return Metric(chosen, higher, chosen not in measures, bounded)


def item_view(table: ItemTable, metric: Metric | None, other: ItemTable | None = None, most: int = 100) -> ItemView:
    """Chooses what is shown of a part.

    Args:
        table: its items.
        metric: their order, see `metric_of`.
        other: the same part of another run.
        most: number of the worst items, and half as many of those that changed, each way.
    """
    items = list(table.items())
    if metric is None:
        return ItemView(table.part, None, len(items), [])
    before = _by_hash(other.items()) if other is not None else {}
    judged = []
    for key, item in _by_hash(items).items():
        if (value := metric.value(item)) is not None:
            there = before.get(key)
            judged.append(Judged(item, value, there, metric.value(there)))
    sign = -1.0 if metric.higher else 1.0
    imperfect = [one for one in judged if not metric.perfect(one.value)]
    worst = sorted(imperfect, key=lambda one: (-sign * one.value, -one.confidence))[:most]
    length_of, size = _length(items)
    named = [(subject, [one for one in judged if one.item.subject == subject]) for subject in table.subjects]
    subjects = [(subject, len(own), metric.score([one.item for one in own]) or 0.0) for subject, own in named if own]
    return ItemView(
        table.part,
        metric,
        len(items),
        worst,
        _bands(judged, size, metric),
        length_of,
        subjects if len(subjects) > 1 else [],
        _change(judged, before, sign, most // 2) if other is not None else None,
    )


def _by_hash(items: Iterable[Item]) -> dict[tuple[str, str, int], Item]:
    """Items by subject and hash; equal ones are counted, so that the second meets the second."""
    seen: dict[tuple[str, str], int] = {}
    found = {}
    for item in items:
        key = (item.subject, item.hash)
        seen[key] = seen.get(key, 0) + 1
        found[(*key, seen[key])] = item
    return found


def _change(judged: list[Judged], before: dict[Any, Item], sign: float, most: int) -> ItemChange:
    common = [one for one in judged if one.before is not None]
    worse = sorted((one for one in common if _step(one, sign) > 0), key=lambda one: -_step(one, sign))
    better = sorted((one for one in common if _step(one, sign) < 0), key=lambda one: _step(one, sign))
    paired = sum(one.other is not None for one in judged)
    return ItemChange(
        len(common),
        len(better),
        len(worse),
        len(judged) - paired,
        len(before) - paired,
        worse[:most],
        better[:most],
    )


def _step(one: Judged, sign: float) -> float:
    """How much worse an item became; below 0: better."""
    assert one.before is not None
    return sign * (one.value - one.before)


def _length(items: Sequence[Item]) -> tuple[str, Callable[[Item], int]]:
    """Of a document or of answers that were given: their bytes; of a question: its own."""
    if all(not item.choices and item.answer is None and item.bytes is not None for item in items):
        return "bytes of the scored text", lambda item: item.bytes or 0
    return "bytes of what was asked", lambda item: len(item.asked.encode())


def _bands(judged: list[Judged], size: Callable[[Item], int], metric: Metric) -> list[Band]:
    """Up to `BANDS` bands with about as many items each; items of one length stay together."""
    if len(judged) < 2 * BANDS:
        return []
    ordered = sorted(judged, key=lambda one: size(one.item))
    sizes = np.array([size(one.item) for one in ordered])
    # No border lies between items of one length.
    starts = [int(np.searchsorted(sizes, sizes[len(ordered) * band // BANDS])) for band in range(1, BANDS)]
    edges = [0, *sorted(set(starts) - {0}), len(ordered)]
    bands = []
    for low, high in itertools.pairwise(edges):
        own = ordered[low:high]
        there = [one.other for one in own if one.other is not None]
        score = metric.score([one.item for one in own])
        if score is not None:
            bands.append(Band(int(sizes[low]), int(sizes[high - 1]), len(own), score, metric.score(there)))
    return bands

"""Finds what a score of an evaluated directory is made of: its items, or why there are none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from eval.comparison.significance import Array, CorpusMetric
from eval.items.store import parts_with_items, read_items
from eval.items.table import ItemTable
from eval.results import MEMBERS, Result, Results, members_of

# Sums of items give a score up to rounding.
_ROUNDING = 1e-6
# Perplexities are e to the power of these.
_RATIOS = {"perplexity": "nats_per_token", "word_perplexity": "nats_per_word", "byte_perplexity": "nats_per_byte"}
_EXPONENTIAL = "perplexity"


class NoItems(ValueError):
    """A score has no items that it could be compared by; the message says why."""


@dataclass(frozen=True)
class ScoreItems:
    """What one score is made of.

    Attributes:
        ids, hashes: of its n items.
        values: of shape (n, 2): numerators and denominators; or (n, k): sufficient statistics.
        corpus: the values are statistics of a score of the whole corpus.
        exponential: the score is e to the power of the ratio.
        windows: the items are windows of few documents.
    """

    ids: list[str]
    hashes: list[str]
    values: Array
    corpus: bool = False
    exponential: bool = False
    windows: bool = False

    @property
    def ratio(self) -> float:
        """The score that numerators and denominators give."""
        above, below = self.values.sum(axis=0)
        ratio = float(above / below) if below else math.nan
        return _power(ratio) if self.exponential else ratio

    def score(self, result: Result) -> float:
        """Returns the score that the items give; NaN where they give none."""
        if self.corpus:
            return CorpusMetric(result.named.metric, result.signature or "")(self.values.sum(axis=0))
        return self.ratio


def _power(ratio: float) -> float:
    return math.exp(ratio) if ratio < 709 else math.inf


class ScoredItems:
    """Reads the items of a directory with `results.json` and `scores/`: a run, or what was copied from one."""

    def __init__(self, directory: Path, results: Results) -> None:
        self.directory, self._results = directory, results

    @cached_property
    def _tables(self) -> dict[tuple[str, str], ItemTable | str]:
        """(kind, subject) -> the table with its items, or what is wrong with it."""
        found: dict[tuple[str, str], ItemTable | str] = {}
        known = parts_with_items(self.directory)
        lost = self._results.items.keys() - set(known)
        found |= {(part.partition("/")[0], part.partition("/")[2]): "its items are missing or damaged" for part in lost}
        for part in known:
            kind = part.partition("/")[0]
            try:
                table = read_items(self.directory, part)
            except ValueError as error:
                found[kind, part.partition("/")[2]] = str(error)
                continue
            if self._results.items.get(part) != table.fingerprint:
                again = f"its items of `{part}` are of another evaluation"
                found |= {(kind, subject): again for subject in table.subjects}
            else:
                for subject in table.subjects:
                    found.setdefault((kind, subject), table)
        return found

    def of(self, result: Result) -> ScoreItems:
        """Returns the items of a score.

        Raises:
            NoItems: when there are none, they are damaged, or they do not give the score.
        """
        if members := [(name, chance, None) for name, chance in members_of(result)]:
            return self._averaged(result, members)
        if MEMBERS in result.settings:
            return self._averaged(result, [(name, 0.0, weight) for name, weight in result.settings[MEMBERS].items()])
        table = self._tables.get((result.named.kind, result.named.subject))
        if not isinstance(table, ItemTable):
            raise NoItems(table or "it has no items")
        found = list(_candidates(table, result))
        for items in found:
            if math.isclose(items.score(result), result.value, rel_tol=_ROUNDING, abs_tol=1e-12):
                return items
        if found:
            raise NoItems(f"its items give {found[0].score(result):.6g}, not {result.value:.6g}")
        raise NoItems("it has no items")

    def _averaged(self, result: Result, members: Sequence[tuple[str, float, float | None]]) -> ScoreItems:
        """Returns the items of all tasks of an aggregate or a group."""
        scores = self._results.by_name()
        if any(name not in scores for name, _, _ in members):
            raise NoItems("a task of it has no score")
        found = [Member(name, self.of(scores[name]), chance, weight) for name, chance, weight in members]
        if any(member.items.corpus or member.items.exponential for member in found):
            raise NoItems("a task of it has no score that is a mean of its items")
        items = averaged(found)
        if not math.isclose(items.score(result), result.value, rel_tol=_ROUNDING, abs_tol=1e-9):
            raise NoItems(f"its items give {items.score(result):.6g}, not {result.value:.6g}")
        return items


@dataclass(frozen=True)
class Member:
    """A task of an aggregate.

    Attributes:
        name: of its score.
        items: of its score.
        chance: the accuracy of guessing, which counts as 0; 0: accuracies count as they are.
        weight: its share of the aggregate; None: the same for all.
    """

    name: str
    items: ScoreItems
    chance: float = 0.0
    weight: float | None = None


def averaged(members: Sequence[Member]) -> ScoreItems:
    """Returns the items of a weighted mean of accuracies: the weight of a task is divided among its items.

    Where no chance is taken off and all items weigh the same, they stay right or wrong.
    """
    ids, hashes, values = [], [], []
    for one in members:
        above, below = one.items.values.T
        weights = below / below.sum() * (1 / len(members) if one.weight is None else one.weight)
        values.append(np.stack([(above - one.chance * below) / below * weights / (1 - one.chance), weights], axis=1))
        ids += one.items.ids
        hashes += [f"{one.name}/{own}" for own in one.items.hashes]  # two tasks may ask the same
    joined = np.concatenate(values)
    if not any(one.chance for one in members) and np.allclose(joined[:, 1], joined[0, 1], rtol=1e-9, atol=0):
        joined = np.concatenate([one.items.values for one in members])
    return ScoreItems(ids, hashes, joined)


def _candidates(table: ItemTable, result: Result) -> Iterator[ScoreItems]:
    """Yields what may be the items of a score, the likeliest first: the end of its name may be a filter or a tag."""
    kind, subject, metric, variant = result.named
    names: list[tuple[str, str | None]] = [(f"{metric}/{variant}" if variant else metric, None)]
    if variant:
        before, _, tag = f"{metric}/{variant}".rpartition("/")
        names.append((before, tag))
    for name, among in names:
        head, slash, rest = name.partition("/")
        if (kept := table.statistics(name, subject, among)) is not None:
            if kind in ("translation", "summarization"):
                yield ScoreItems(*kept, corpus=True)
            elif head.endswith(_EXPONENTIAL) and kept[2].shape[1] <= 2:
                yield ScoreItems(*kept[:2], _of_log_likelihoods(kept[2]), exponential=True)
        for known in (name, _RATIOS.get(head, head) + slash + rest):
            if (units := table.measure(known, subject, among)) is not None:
                values = np.stack([units.numerators, units.denominators], axis=1)
                power = head.endswith(_EXPONENTIAL)
                yield ScoreItems(units.ids, units.hashes, values, exponential=power, windows=units.of_documents)


def _of_log_likelihoods(statistics: Array) -> Array:
    """Returns numerators and denominators of lm-eval's perplexities: log-likelihoods, and words or bytes if counted."""
    below = statistics[:, 1] if statistics.shape[1] > 1 else np.ones(len(statistics))
    return np.stack([-statistics[:, 0], below], axis=1)


def common(one: list[str], other: list[str]) -> tuple[list[int], list[int]]:
    """Returns the rows of the items that both have, by hash; the k-th of equal items goes with the k-th."""
    places: dict[str, list[int]] = {}
    for row, name in enumerate(other):
        places.setdefault(name, []).append(row)
    taken: dict[str, int] = {}
    ours, theirs = [], []
    for row, name in enumerate(one):
        count = taken.get(name, 0)
        if count < len(places.get(name, ())):
            ours.append(row)
            theirs.append(places[name][count])
            taken[name] = count + 1
    return ours, theirs

"""Compares scores of two models, or of many with the first: on the same items where both have items.

Items that both models find hard say nothing about their difference, so a paired test sees smaller differences than two
intervals do. Scores without items are compared by their two intervals, and the method says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from eval.comparison.comparable import other_rules, other_set
from eval.comparison.scored_items import NoItems, ScoredItems, ScoreItems, common
from eval.comparison.significance import LEVEL, CorpusMetric, PairedOutcome, compare_corpora, compare_ratios, holm
from eval.results import EXACT, Change, Result, Results, ScoreName, load_results

SAMPLES = 1000
_Z = 1.959963984540054
# Scores of a perplexity set that are the same nats, in other units.
_SAME_NATS = {"bits_per_byte", "nats_per_token", "perplexity", "word_perplexity", "byte_perplexity"}
_BOTH_INFINITE = "both are infinite; compare the bits per byte or nats per token of the set"
# Scores that no model makes, baselines, and what is neither better nor worse.
_NO_MODEL = {
    ("chat", "length"),
    ("compression", "gzip_bits_per_byte"),
    ("compression", "xz_bits_per_byte"),
    ("compression", "zstd_bits_per_byte"),
    ("information", "other_bits"),
    ("information", "other_saved_bits"),
    ("preference", "longer"),
    ("preference", "less_repeated"),
}
# Beginnings of the metrics of controls: a copied source, sentences that no model chose.
_CONTROLS = {"translation": ("copy_",), "summarization": ("lead_", "lexrank_", "random_", "oracle_")}


@dataclass(frozen=True)
class Scores:
    """The scores of one model with their items.

    Attributes:
        label: how pages call the run.
        directory: a run, or a directory with its `results.json` and `scores/*.items.parquet`.
    """

    label: str
    directory: Path
    results: Results
    items: ScoredItems

    @classmethod
    def read(cls, directory: Path, label: str | None = None) -> Scores:
        """Reads the scores of a directory.

        Raises:
            ValueError: when it has none.
        """
        results = load_results(directory)
        return cls(label or directory.resolve().name, directory, results, ScoredItems(directory, results))


def compare_scores(
    after: Scores, before: Scores, samples: int = SAMPLES, names: Sequence[str] | None = None
) -> list[Change]:
    """Compares the scores that both have, without an adjustment for their number; see `adjusted`.

    Args:
        after: the later model, or the one that is judged.
        before: the model that it is compared with.
        samples: number of bootstrap resamples.
        names: compare these scores alone.
    """
    earlier = before.results.by_name()
    return [
        _of_bounds(_change(result, earlier[result.name], after, before, samples), result, earlier[result.name])
        for result in after.results.results
        if result.name in earlier and is_of_model(result) and (names is None or result.name in names)
    ]


def is_of_model(result: Result) -> bool:
    """Tells whether a score says how good a model is: compressors and other baselines do not change with it."""
    named = result.named
    if named.metric.startswith(_CONTROLS.get(named.kind, ())):
        return False
    return not {(named.kind, ""), (named.kind, named.metric)} & _NO_MODEL


def adjusted(changes: Sequence[Change], results: dict[str, Result]) -> list[Change]:
    """Gives each change its verdict, after Holm's method over all of them; see `adjusted_among`."""
    return adjusted_among({"": changes}, results)[""]


def adjusted_among(groups: Mapping[str, Sequence[Change]], results: dict[str, Result]) -> dict[str, list[Change]]:
    """Gives each change of each run its verdict, after Holm's method over all changes of all runs.

    The scores of a perplexity set (per byte, per token, e to the power of it) are one question and count once. Scores
    without an item that differs had nothing to test, and do not count.

    Args:
        groups: name of a run -> all its scores that are compared.
        results: scores by name, which tell whether higher is better.
    """
    questions: dict[tuple[str, ...], float] = {}
    for run, changes in groups.items():
        for change in changes:
            if change.p is not None:
                key = (run, *question_of(change))
                questions[key] = max(change.p, questions.get(key, 0.0))
    corrected = dict(zip(questions, holm(list(questions.values())), strict=True))
    return {
        run: [
            change
            if change.p is None
            else _verdict(change, corrected[run, *question_of(change)], len(questions), results)
            for change in changes
        ]
        for run, changes in groups.items()
    }


def question_of(change: Change) -> tuple[str, ...]:
    """Returns what a change answers, without the run: scores of a perplexity set are one question in several units."""
    kind, subject, metric, tag = ScoreName.parse(change.name)
    own = (kind, subject, tag) if kind == "perplexity" and metric in _SAME_NATS else (change.name,)
    return (change.against, *own)


def _verdict(change: Change, corrected: float, count: int, results: dict[str, Result]) -> Change:
    assert change.p is not None
    improved = (change.after > change.before) == results[change.name].higher_is_better
    verdict = ("better" if improved else "worse") if corrected < LEVEL else "no difference"
    reason = change.reason
    if change.p < LEVEL <= corrected:
        alone = f"p = {change.p:.2g} alone, {corrected:.2g} among the {count} scores compared"
        reason = "; ".join(filter(None, [reason, alone]))
    return replace(change, adjusted=corrected, verdict=verdict, reason=reason)


# --------------------------------------------------------------------------------------------------------------- items
def _change(ours: Result, theirs: Result, after: Scores, before: Scores, samples: int) -> Change:
    plain = Change(ours.name, before.label, theirs.value, ours.value, None, None, None, "none", "incomparable")
    if reason := other_rules(ours, theirs):
        return replace(plain, reason=reason)
    try:
        pair = after.items.of(ours), before.items.of(theirs)
    except NoItems:
        missing = [_without(scores, result) for scores, result in ((after, ours), (before, theirs))]
        return _by_intervals(plain, ours, theirs, "; ".join(filter(None, missing)))
    return _by_items(plain, ours, pair, (after, before), samples)


def _of_bounds(change: Change, ours: Result, theirs: Result) -> Change:
    """Gives no verdict where upper bounds decide none: a bound above an exact score, and a difference of bounds."""
    if change.verdict == "incomparable":
        return change
    if ours.is_made_of_bounds != theirs.is_made_of_bounds:
        return _undecided(change, "made of upper bounds in one run, of exact scores in the other")
    if ours.is_bound == theirs.is_bound:
        return change
    bound, exact = (change.after, change.before) if ours.is_bound else (change.before, change.after)
    if bound > exact:
        return _undecided(change, "an upper bound above an exact score; what it bounds may be below")
    what = "an upper bound that is not above an exact score, so what it bounds is not either"
    return replace(change, reason="; ".join(filter(None, [change.reason, what])))


def _undecided(change: Change, why: str) -> Change:
    return replace(change, verdict="incomparable", p=None, reason="; ".join(filter(None, [change.reason, why])))


def _without(scores: Scores, result: Result) -> str:
    try:
        scores.items.of(result)
    except NoItems as error:
        return f"{scores.label}: {error}"
    return ""


def _by_items(
    plain: Change, ours: Result, pair: tuple[ScoreItems, ScoreItems], runs: tuple[Scores, Scores], samples: int
) -> Change:
    rows = common(pair[0].hashes, pair[1].hashes)
    counted = replace(plain, n=len(rows[0]), n_after=len(pair[0].hashes), n_before=len(pair[1].hashes))
    if not rows[0]:
        return replace(counted, reason=f"no item is in both: {counted.n_after:,} and {counted.n_before:,} others")
    chosen = [items.values[own] for items, own in zip(pair, rows, strict=True)]
    for items, own, values, run in zip(pair, rows, chosen, runs, strict=True):
        broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(broken):
            name, more = items.ids[own[int(broken[0])]], f" and {len(broken) - 1} more" if len(broken) > 1 else ""
            return replace(counted, reason=f"{run.label} has no finite number for item `{name}`{more}")
    if not pair[0].corpus and not all(values[:, 1].sum() > 0 for values in chosen):
        return replace(counted, reason="the items that both have add up to a denominator of 0")
    outcome = _outcome(ours, pair, chosen, samples)
    counted = replace(counted, before=outcome.before, after=outcome.after)
    if outcome.before == outcome.after and not math.isfinite(outcome.after):
        return replace(counted, reason=_BOTH_INFINITE)
    return replace(
        counted,
        low=outcome.low,
        high=outcome.high,
        p=outcome.p if outcome.differing else None,
        method=outcome.method,
        verdict="no difference",
        reason="; ".join(_reservations(counted, pair[0].windows)) or None,
    )


def _reservations(change: Change, windows: bool) -> Iterator[str]:
    """Yields what to keep in mind of the items that were compared."""
    if max(change.n_after, change.n_before) > change.n:
        yield f"on the {change.n:,} items that both have, of {change.n_after:,} and {change.n_before:,}"
    if windows:
        yield f"the {change.n:,} items are windows of few documents, and not independent: p may be too small"


def _outcome(
    ours: Result, pair: tuple[ScoreItems, ScoreItems], chosen: Sequence[np.ndarray], samples: int
) -> PairedOutcome:
    if pair[0].corpus:
        metric = CorpusMetric(ours.named.metric, ours.signature or "")
        return compare_corpora(metric, chosen[0], chosen[1], samples)
    one, other = ((values[:, 0], values[:, 1]) for values in chosen)
    return compare_ratios(one, other, samples, exponential=pair[0].exponential)


# ----------------------------------------------------------------------------------------------------------- intervals
def _by_intervals(plain: Change, ours: Result, theirs: Result, why: str) -> Change:
    """Compares two intervals as if they were of other items: the best that can be said without items.

    The interval of the difference combines both (Zou and Donner 2008); p is that of a normal distribution of its width.
    """
    if reason := other_set(ours, theirs):
        return replace(plain, reason=f"{reason}; {why}")
    if ours.value == theirs.value:
        if not math.isfinite(ours.value):
            return replace(plain, reason=f"{_BOTH_INFINITE}; {why}")
        return replace(plain, verdict="no difference", method=f"equal scores ({why})")
    if ours.interval.startswith(EXACT) and theirs.interval.startswith(EXACT):
        better = (ours.value > theirs.value) == ours.higher_is_better
        return replace(plain, verdict="better" if better else "worse", method="exact: sizes of the same text")
    for score, whose in ((ours, "this run's"), (theirs, "the other's")):
        # An interval without width claims a certainty that no estimate has.
        if score.low is None or score.high is None or not score.low < score.high:
            return replace(plain, reason=f"{whose} score has no interval ({score.interval}); {why}")
    assert ours.low is not None and ours.high is not None and theirs.low is not None and theirs.high is not None
    change = ours.value - theirs.value
    ends = [ours.low, ours.high, theirs.low, theirs.high, change]
    if not all(map(math.isfinite, ends)):
        return replace(plain, reason=f"infinite; {why}")
    low = change - math.hypot(ours.value - ours.low, theirs.high - theirs.value)
    high = change + math.hypot(ours.high - ours.value, theirs.value - theirs.low)
    z = _Z * abs(change) / (change - low if change > 0 else high - change)
    method = f"not paired, from the two intervals ({why})"
    return replace(plain, low=low, high=high, p=math.erfc(z / math.sqrt(2)), method=method, verdict="no difference")

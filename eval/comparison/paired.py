"""Compares two models on the same items: a stage with the one that its training started from.

Items that both models find hard say nothing about their difference, so a paired test sees smaller differences than two
intervals do. Items that are right or wrong are compared by McNemar's exact test, others by a paired bootstrap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from eval.comparison.comparable import difference
from eval.results import Change, Items, Result
from eval.statistics import bootstrap_difference, mcnemar

LEVEL = 0.05


def compare_paired(
    results: Sequence[Result], earlier: Iterable[Result], parent: str, bootstrap_samples: int
) -> list[Change]:
    """Compares each score that has items with the score of the same name of the parent.

    Args:
        results: scores of a stage, with their items.
        earlier: scores of its parent, with their items. Scores that the parent has not are left out.
        parent: name of the parent stage, or `base`.
        bootstrap_samples: number of resamples.
    """
    before = {result.name: result for result in earlier if result.items is not None}
    return [
        _change(before[result.name], result, parent, bootstrap_samples)
        for result in results
        if result.items is not None and result.name in before
    ]


def _change(before: Result, after: Result, parent: str, samples: int) -> Change:
    assert before.items is not None and after.items is not None
    change = partial(Change, after.name, parent, before.value, after.value)
    if reason := difference(after, before) or _unequal(before.items, after.items):
        return change(None, None, None, "none", "incomparable", reason)
    ours, theirs = _arrays(after.items), _arrays(before.items)
    interval = bootstrap_difference(ours, theirs, samples)
    low, high = interval or (None, None)
    n = len(after.items.numerators)
    if _right_or_wrong(before.items) and _right_or_wrong(after.items):
        lost, gained = (int(((a[0] == 1) & (b[0] == 0)).sum()) for a, b in ((theirs, ours), (ours, theirs)))
        p = mcnemar(lost, gained)
        method = f"McNemar's exact test over {n} items: {gained} gained, {lost} lost"
        changed = p < LEVEL
    else:
        p, method = None, f"paired bootstrap over {n} items"
        changed = interval is not None and not interval[0] <= 0 <= interval[1]
    improved = (after.value > before.value) == after.higher_is_better
    verdict = ("better" if improved else "worse") if changed else "no difference"
    return change(low, high, p, method, verdict)


def _unequal(before: Items, after: Items) -> str | None:
    """Tells why items cannot be paired: as many of them, each of the same weight."""
    if len(before.numerators) != len(after.numerators) or before.denominators != after.denominators:
        return "the items of both do not match"
    return None


def _arrays(items: Items) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    return np.asarray(items.numerators, dtype=np.float64), np.asarray(items.denominators, dtype=np.float64)


def _right_or_wrong(items: Items) -> bool:
    return set(items.numerators) <= {0, 1} and set(items.denominators) <= {1}

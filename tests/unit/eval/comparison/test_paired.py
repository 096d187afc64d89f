"""Two models on the same items: McNemar's exact test, paired bootstrap, pass@k."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest

from eval.comparison.paired import compare_paired
from eval.results import Items, Result
from eval.statistics import bootstrap_difference, mcnemar, pass_at_k


def test_mcnemar_is_the_binomial_test() -> None:
    """Against the sum over all ways of n fair coins; and known values of scipy.stats.binomtest(k, n)."""
    for n in range(1, 12):
        for fewer in range(n // 2 + 1):
            ways = sum(sum(coins) <= fewer for coins in itertools.product((0, 1), repeat=n))
            assert mcnemar(fewer, n - fewer) == pytest.approx(min(1.0, 2 * ways / 2**n), rel=1e-12)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 15) == mcnemar(15, 5) == pytest.approx(0.04138946533203125, rel=1e-12)
    assert mcnemar(0, 6) == 0.03125 and mcnemar(0, 5) == 0.0625


def test_mcnemar_of_many_items() -> None:
    """Beyond the range of floats for 2 ** n; the normal approximation with continuity correction is close by then."""
    for lost, gained in ((900, 1100), (4900, 5100), (2000, 2001)):
        z = (abs(gained - lost) - 1) / math.sqrt(gained + lost)
        assert mcnemar(lost, gained) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.03)


def test_pass_at_k_against_enumeration() -> None:
    for samples in range(1, 7):
        for right in range(samples + 1):
            answers = [True] * right + [False] * (samples - right)
            for k in range(1, samples + 1):
                draws = list(itertools.combinations(answers, k))
                assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_the_paired_bootstrap_sees_what_the_spread_of_items_hides() -> None:
    generator = np.random.default_rng(3)
    sizes = generator.integers(50, 500, 80).astype(float)
    theirs = sizes * generator.normal(2.0, 0.5, 80)
    ours = theirs - sizes * generator.normal(0.02, 0.01, 80)
    low, high = bootstrap_difference((ours, sizes), (theirs, sizes), 500) or (math.nan, math.nan)
    change = (ours.sum() - theirs.sum()) / sizes.sum()
    assert low < change < high < 0 and high - low < 0.01
    assert bootstrap_difference((ours[:1], sizes[:1]), (theirs[:1], sizes[:1]), 500) is None
    assert bootstrap_difference((ours, sizes), (ours, sizes), 500) is None


def score(name: str, above: Sequence[float], below: Sequence[float] | None = None, **changes: object) -> Result:
    parts = [1.0] * len(above) if below is None else list(below)
    higher = below is None
    own = {"items": Items(list(above), parts), "set": "s", **changes}
    return Result(name, sum(above) / sum(parts), 0.0, 1.0, len(above), "share", higher, "Wilson", **own)  # type: ignore[arg-type]


def test_verdicts() -> None:
    before = [
        score("chat/sums/accuracy", [1] * 20 + [0] * 80),
        score("benchmark/x/acc", [1, 0] * 50),
        score("perplexity/h/bits_per_byte", [20.0, 30.0, 41.0, 52.0], [10.0, 15.0, 20.0, 26.0]),
        score("chat/sums/pass@8", [0.5, 0.25, 1, 0.0]),
        score("benchmark/y/acc", [1, 0, 1]),
        score("only/before/acc", [1]),
    ]
    after = [
        score("chat/sums/accuracy", [1] * 15 + [0] * 5 + [1] * 60 + [0] * 20),
        score("benchmark/x/acc", [0, 1] * 3 + [1, 0] * 47),
        score("perplexity/h/bits_per_byte", [22.0, 33.0, 45.0, 56.0], [10.0, 15.0, 20.0, 26.0]),
        score("chat/sums/pass@8", [0.5, 0.25, 1, 0.0]),
        score("benchmark/y/acc", [1, 0, 1], set="t"),
        score("only/after/acc", [1]),
        score("chat/sums/length", [1], items=None),
    ]
    changes = compare_paired(after, before, "sft", 300)
    assert [(change.name.split("/")[-1], change.verdict) for change in changes] == [
        ("accuracy", "better"), ("acc", "no difference"), ("bits_per_byte", "worse"), ("pass@8", "no difference"),
        ("acc", "incomparable"),
    ]  # fmt: skip
    sums = changes[0]
    assert sums.method == "McNemar's exact test over 100 items: 60 gained, 5 lost" and sums.p == mcnemar(5, 60)
    assert sums.low is not None and sums.high is not None and 0.4 < sums.low < sums.after - sums.before < sums.high
    assert (
        changes[1].p == 1.0
        and changes[2].p is None
        and changes[4].reason == ("another set: as many units, other content")
    )


def test_items_of_other_weights_are_not_paired() -> None:
    one = score("perplexity/h/bits_per_byte", [20.0, 30.0], [10.0, 15.0])
    other = score("perplexity/h/bits_per_byte", [20.0, 30.0], [10.0, 16.0])
    assert [change.reason for change in compare_paired([one], [other], "base", 300)] == [
        "the items of both do not match"
    ]

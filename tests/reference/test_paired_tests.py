"""Paired tests against scipy, sacrebleu and published examples."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest
from scipy import stats

from eval.comparison.significance import (
    SACREBLEU_SEED,
    CorpusMetric,
    compare_corpora,
    compare_ratios,
    corpus_bootstrap,
    corpus_randomised,
    holm,
)
from eval.statistics import mcnemar

WORDS = [
    "the",
    "a",
    "king",
    "queen",
    "house",
    "river",
    "old",
    "young",
    "went",
    "saw",
    "and",
    "of",
    "in",
    "under",
    "never",
]


def translations(sentences: int, damage: tuple[float, float], seed: int = 3) -> tuple[list[str], list[str], list[str]]:
    """References, and two systems whose words are wrong with these probabilities."""
    draw = random.Random(seed)
    references = [" ".join(draw.choices(WORDS, k=draw.randint(5, 14))) for _ in range(sentences)]

    def system(rate: float) -> list[str]:
        return [
            " ".join(draw.choice(WORDS) if draw.random() < rate else word for word in line.split())
            for line in references
        ]

    return references, system(damage[0]), system(damage[1])


def statistics(metric: Any, hypotheses: list[str], references: list[str]) -> np.ndarray:
    return np.array(metric._extract_corpus_statistics(hypotheses, [references]), dtype=np.float64)


@pytest.mark.parametrize("damage", [(0.30, 0.30), (0.30, 0.25), (0.40, 0.30)])
@pytest.mark.parametrize(("name", "kind"), [("bleu", BLEU), ("chrf", CHRF)])
def test_bleu_and_chrf_have_the_p_values_of_sacrebleu(name: str, kind: Any, damage: tuple[float, float]) -> None:
    """`--paired-ar` and `--paired-bs` at the same seed, from the statistics that items keep."""
    references, theirs, ours = translations(80, damage)
    metric = kind()
    metric.corpus_score(theirs, [references])
    kept = CorpusMetric(name, str(metric.get_signature()))
    one, other = (statistics(metric, system, references) for system in (ours, theirs))
    for test, trials, own in (
        ("ar", 600, lambda: corpus_randomised(kept, one, other, 600, SACREBLEU_SEED, ties=False)),
        ("bs", 400, lambda: corpus_bootstrap(kept, one, other, 400, SACREBLEU_SEED)[0]),
    ):
        systems = [("before", theirs), ("after", ours)]
        _, scores = PairedTest(systems, {name: metric}, [references], test_type=test, n_samples=trials)()
        found = next(values for key, values in scores.items() if key != "System")
        assert kept(one.sum(0)) == pytest.approx(found[1].score, rel=1e-9)
        assert own() == found[1].p_value, test
    counted = corpus_randomised(kept, one, other, 600, SACREBLEU_SEED)
    assert 0 <= counted - corpus_randomised(kept, one, other, 600, SACREBLEU_SEED, ties=False) < 0.01


def test_swaps_that_give_the_very_difference_count() -> None:
    """sacrebleu calls two equal systems, or two sentences, different with p = 0.0001."""
    metric = CorpusMetric("bleu", "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0")
    references, theirs, ours = translations(2, (0.5, 0.0))
    one, other = (statistics(BLEU(), system, references) for system in (ours, theirs))
    assert compare_corpora(metric, one, other, 100).p > 0.4
    same = compare_corpora(metric, one, one, 100)
    assert (same.p, same.low, same.differing) == (1.0, None, 0)


def test_mcnemar_is_scipys_binomial_test() -> None:
    for lost, gained in ((0, 1), (3, 9), (5, 15), (40, 61), (900, 1100)):
        assert mcnemar(lost, gained) == pytest.approx(stats.binomtest(gained, lost + gained).pvalue, rel=1e-9)


def test_few_items_are_scipys_permutation_test() -> None:
    """All ways to swap: scipy's exact `permutation_test` of paired samples."""
    generator = np.random.default_rng(5)
    for n in (4, 8, 12):
        ours, theirs, sizes = generator.normal(2.2, 1, n), generator.normal(2.0, 1, n), np.ones(n)
        exact = stats.permutation_test(
            (ours, theirs), lambda a, b: abs(a.mean() - b.mean()), permutation_type="samples", alternative="greater"
        )
        assert compare_ratios((ours, sizes), (theirs, sizes), 100).p == pytest.approx(exact.pvalue, rel=1e-12)


def test_ranks_give_wilcoxons_test() -> None:
    """Approximate randomisation of signed ranks is Wilcoxon's signed-rank test."""
    generator = np.random.default_rng(6)
    for n in (9, 60):
        difference = generator.normal(0.25, 1, n)
        ranks = np.sign(difference) * stats.rankdata(np.abs(difference))
        ours, theirs, sizes = np.maximum(ranks, 0), np.maximum(-ranks, 0), np.ones(n)
        method = "exact" if n < 20 else "asymptotic"
        expected = stats.wilcoxon(difference, method=method).pvalue
        # Monte Carlo: 10,000 trials have a standard error of 0.005 at most.
        assert compare_ratios((ours, sizes), (theirs, sizes), 100).p == pytest.approx(
            expected, abs=0.015 * (n > 13) + 1e-9
        )


def test_holm_of_a_published_example() -> None:
    """By hand, and the fifteen tests of Benjamini and Hochberg 1995, section 3.2."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    values = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528]
    values += [0.7590, 1.000]
    assert sum(value < 0.05 for value in holm(values)) == 3
    assert holm([]) == [] and holm([0.5]) == [0.5] and holm([0.9, 0.8]) == [1.0, 1.0]

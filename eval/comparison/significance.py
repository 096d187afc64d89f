"""Tests whether two models differ on the same items, and by how much.

Each test takes both scores of every item, so that what makes an item hard for both cancels out:

- right or wrong: McNemar's exact test;
- a ratio of sums, such as bits per byte: approximate randomisation, which swaps the models' scores of random items
  (Noreen 1989), and a paired bootstrap for the interval;
- BLEU and chrF: the paired tests of sacrebleu, on the sufficient statistics of each pair of sentences.

Holm's method adjusts p-values where many scores are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.statistics import SEED, bootstrap_difference, mcnemar, percentiles

LEVEL = 0.05
TRIALS = 10_000
SACREBLEU_SEED = 12345
# With so few differing items, every way to swap them is tried: 2 to the power of this.
_MOST_ENUMERATED = 13
_SIGNS_AT_ONCE = 4_000_000
_SHARE_POINTS, _GAIN_POINTS = 100, 1000
# Differences that are equal but for rounding count as equal.
_ROUNDING = 1e-9

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PairedOutcome:
    """What a paired test found.

    Attributes:
        before, after: both scores, on the items of the test.
        low, high: 95% interval of `after - before`; both None where no item tells the models apart.
        p: probability of a difference at least as large if the two models were alike (two-sided).
        method: of test and interval.
        differing: number of items that tell the models apart. With none, there was nothing to test.
    """

    before: float
    after: float
    low: float | None
    high: float | None
    p: float
    method: str
    differing: int


def compare_ratios(
    ours: tuple[Array, Array], theirs: tuple[Array, Array], bootstrap_samples: int, exponential: bool = False
) -> PairedOutcome:
    """Compares two scores that are sums of numerators over sums of denominators, item by item.

    Right or wrong is a numerator of 1 or 0 over a denominator of 1.

    Args:
        ours: numerators and denominators of the later model, of shape (n,) each.
        theirs: of the earlier model, for the same items.
        bootstrap_samples: number of resamples for the interval.
        exponential: the scores are e to the power of these ratios; the test is that of the ratios.
    """
    convert = _power if exponential else np.asarray
    ratios = [float(above.sum() / below.sum()) for above, below in (theirs, ours)]
    before, after = (float(convert(ratio)) for ratio in ratios)
    different = (ours[0] != theirs[0]) | (ours[1] != theirs[1])
    n, differing = len(different), int(different.sum())
    if _right_or_wrong(*ours) and _right_or_wrong(*theirs):
        lost, gained = int((theirs[0] > ours[0]).sum()), int((ours[0] > theirs[0]).sum())
        low, high = mcnemar_interval(lost, gained, n)
        method = f"McNemar's exact test: {gained:,} gained, {lost:,} lost"
        return PairedOutcome(before, after, low, high, mcnemar(lost, gained), method, differing)
    if not differing:
        return PairedOutcome(before, after, None, None, 1.0, "no item differs", 0)
    low, high = bootstrap_difference(ours, theirs, bootstrap_samples, convert) or (None, None)
    columns = np.stack([(one - other)[different] for one, other in zip(ours, theirs, strict=True)], axis=1)
    totals = np.array([(one + other).sum() for one, other in zip(ours, theirs, strict=True)])
    p, how = _randomised(columns, totals, ratios[1] - ratios[0])
    return PairedOutcome(before, after, low, high, p, f"approximate randomisation ({how}), paired bootstrap", differing)


def _power(ratios: Any) -> Any:
    with np.errstate(over="ignore"):
        return np.exp(ratios)


def _right_or_wrong(above: Array, below: Array) -> bool:
    return bool(np.isin(above, (0.0, 1.0)).all() and (below == 1).all())


def _randomised(columns: Array, totals: Array, difference: float) -> tuple[float, str]:
    """Returns the p-value of approximate randomisation, and how many ways to swap items were tried.

    Args:
        columns: differences of numerators and of denominators, of shape (differing items, 2).
        totals: sums of both models' numerators and denominators over all items.
        difference: of the two scores.
    """
    n, extreme, trials = len(columns), 0, 0
    least = abs(difference) * (1 - _ROUNDING)
    for signs in _every_swap(n) if n <= _MOST_ENUMERATED else _random_swaps(n):
        swapped = signs @ columns
        one, other = ((totals + side * swapped) / 2 for side in (1, -1))
        extreme += int((np.abs(one[:, 0] / one[:, 1] - other[:, 0] / other[:, 1]) >= least).sum())
        trials += len(signs)
    if n <= _MOST_ENUMERATED:
        return extreme / trials, f"all {trials:,} ways to swap {n}"
    # The data as they are count as one of the trials, so that p is never 0 (Phipson and Smyth 2010).
    return (extreme + 1) / (trials + 1), f"{trials:,} trials"


def _every_swap(n: int) -> Iterator[Array]:
    patterns = np.arange(2**n)[:, None] >> np.arange(n)
    yield np.asarray(1 - 2 * (patterns & 1), dtype=np.float64)


def _random_swaps(n: int) -> Iterator[Array]:
    generator, step = np.random.default_rng(SEED), max(1, _SIGNS_AT_ONCE // n)
    for start in range(0, TRIALS, step):
        drawn = generator.integers(0, 2, size=(min(step, TRIALS - start), n), dtype=np.int8)
        yield np.asarray(1 - 2 * drawn, dtype=np.float64)


def mcnemar_interval(lost: int, gained: int, n: int) -> tuple[float | None, float | None]:
    """Computes the 95% interval of a difference of shares that agrees with McNemar's exact test.

    It leaves out 0 where p < 0.05. The difference is d (2 g - 1), for the share d of items that differ and the share g
    of gains among them. The interval combines ("melds") the exact limits of both (Clopper and Pearson 1934; Fay and
    Lumbard 2021, doi:10.1002/sim.8829), at evenly spread quantiles.

    Returns:
        Both ends; None and None where no item differs.
    """
    differing = lost + gained
    if not differing:
        return None, None
    from scipy.special import betaincinv

    def limits(successes: int, of: int, points: int) -> tuple[Array, Array]:
        at = (np.arange(points) + 0.5) / points
        low = betaincinv(successes, of - successes + 1, at) if successes else np.zeros(points)
        return low, betaincinv(successes + 1, of - successes, at) if successes < of else np.ones(points)

    share_low, share_high = (limit[:, None] for limit in limits(differing, n, _SHARE_POINTS))
    gain_low, gain_high = (2 * limit - 1 for limit in limits(gained, differing, _GAIN_POINTS))
    lowest = np.where(gain_low > 0, share_low, share_high) * gain_low
    highest = np.where(gain_high > 0, share_high, share_low) * gain_high
    return float(np.percentile(lowest, 2.5)), float(np.percentile(highest, 97.5))


def holm(values: Sequence[float]) -> list[float]:
    """Adjusts p-values by Holm's method (Holm 1979): the chance of any false claim among all stays below the level.

    The k-th smallest of m is multiplied by m - k + 1, and none is below a smaller one.
    """
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted


# ------------------------------------------------------------------------------------------------------ BLEU and chrF
class CorpusMetric:
    """Computes a corpus score of sacrebleu from the sums of its sufficient statistics.

    Args:
        name: `bleu` or `chrf`.
        signature: sacrebleu's signature of the score, such as `nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|…`.
    """

    def __init__(self, name: str, signature: str) -> None:
        from sacrebleu.metrics import BLEU, CHRF

        said = dict(part.split(":", 1) for part in signature.split("|") if ":" in part)
        if name == "bleu":
            # Statistics are those of tokenized text: the tokenizer is not asked again.
            smooth, _, value = said.get("smooth", "exp").partition("[")
            number = float(value.rstrip("]")) if value else None
            self._metric: Any = BLEU(
                smooth_method=smooth, smooth_value=number, effective_order=said.get("eff") == "yes", tokenize="none"
            )
        else:
            orders = {"char_order": int(said.get("nc", 6)), "word_order": int(said.get("nw", 0))}
            self._metric = CHRF(**orders, eps_smoothing=said.get("eff") == "no", beta=2)

    def __call__(self, sums: npt.NDArray[Any]) -> float:
        """Returns the score of a corpus with these sums of statistics, of shape (statistics,)."""
        return float(self._metric._compute_score_from_stats(sums.tolist()).score)


def corpus_randomised(
    metric: CorpusMetric, ours: Array, theirs: Array, trials: int, seed: int, ties: bool = True
) -> float:
    """Returns the p-value of sacrebleu's `--paired-ar`: both systems' sentences swapped at random.

    At the same seed it equals sacrebleu's, but for `ties`.

    Args:
        metric: computes the score.
        ours: statistics of each sentence of one system, of shape (n, statistics).
        theirs: of the other system, for the same sentences.
        trials: number of ways to swap, see `TRIALS`.
        seed: of the swaps; sacrebleu's is 12345.
        ties: count trials that give the very difference of the systems. sacrebleu does not: two equal systems, or two
            sentences, have p = 1 / (trials + 1) there.
    """
    generator = np.random.default_rng(seed)
    real = abs(metric(theirs.sum(0)) - metric(ours.sum(0)))
    own, total, extreme = ours.sum(0), ours.sum(0) + theirs.sum(0), 0
    step = 32 * max(1, _SIGNS_AT_ONCE // len(ours) // 32)  # numpy draws 32 bits at a time: the stream stays the same
    for start in range(0, trials, step):
        kept = generator.integers(2, size=(min(step, trials - start), len(ours)), dtype=bool)
        for sums in np.rint(own + kept @ (theirs - ours)):
            difference = abs(metric(sums) - metric(total - sums))
            extreme += difference >= real * (1 - _ROUNDING) if ties else difference > real
    return (extreme + 1) / (trials + 1)


def corpus_bootstrap(metric: CorpusMetric, ours: Array, theirs: Array, samples: int, seed: int) -> tuple[float, Array]:
    """Returns the p-value of sacrebleu's `--paired-bs` (Koehn 2004), and the resampled differences.

    Args:
        metric: as `ours`, `theirs` and `seed`, that of `corpus_randomised`.
        ours: statistics of each sentence.
        theirs: of the other system.
        samples: number of resamples.
        seed: of the resamples.
    """
    generator, n = np.random.default_rng(seed), len(ours)
    step = max(1, _SIGNS_AT_ONCE // n)
    differences = np.array(
        [
            metric(ours[row].sum(0)) - metric(theirs[row].sum(0))
            for start in range(0, samples, step)
            for row in generator.choice(n, size=(min(step, samples - start), n), replace=True)
        ]
    )
    spread = np.abs(differences)
    real = abs(metric(ours.sum(0)) - metric(theirs.sum(0)))
    return (int((spread - spread.mean() > real).sum()) + 1) / (samples + 1), differences


def compare_corpora(metric: CorpusMetric, ours: Array, theirs: Array, bootstrap_samples: int) -> PairedOutcome:
    """Compares two corpus scores: approximate randomisation for p, the paired bootstrap for the interval.

    Args:
        metric: computes the score.
        ours: statistics of each sentence of the later model, of shape (n, statistics).
        theirs: of the earlier model, for the same sentences.
        bootstrap_samples: number of resamples for the interval.
    """
    before, after = metric(theirs.sum(0)), metric(ours.sum(0))
    differing = int((ours != theirs).any(axis=1).sum())
    if not differing:
        return PairedOutcome(before, after, None, None, 1.0, "no item differs", 0)
    p = corpus_randomised(metric, ours, theirs, TRIALS, SACREBLEU_SEED)
    _, differences = corpus_bootstrap(metric, ours, theirs, bootstrap_samples, SACREBLEU_SEED)
    low, high = percentiles(differences, len(ours)) or (None, None)
    method = f"sacrebleu's approximate randomisation ({TRIALS:,} trials), paired bootstrap"
    return PairedOutcome(before, after, low, high, p, method, differing)

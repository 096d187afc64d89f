"""Scores generated texts by the metrics of a pair set, and gives each text its share of every score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from configs.schema.pair_sets import GeneratedPairSet, TranslationSet
from eval.results import Result
from eval.statistics import bootstrap_ratio, no_interval
from eval.text_metrics.bleu import bleu_with, check_language, corpus_scores, corpus_statistics
from eval.text_metrics.rouge import ROUGE, UNITS, Rouge

COPY = "copy_"  # before the metrics of the source as its translation
_UNITS = {"bleu": "BLEU", "chrf": "chrF2", **UNITS}


def metrics_of_set(section: GeneratedPairSet) -> tuple[str, ...]:
    """Returns the metrics of a set as scores are named, in order."""
    return tuple(name for kind in section.score for name in (ROUGE if kind == "rouge" else (kind,)))


def translation_metrics(section: TranslationSet) -> tuple[str, ...]:
    """Returns the metrics of a set of translations, and those of the source itself as its translation."""
    names = metrics_of_set(section)
    return (*names, *(f"{COPY}{name}" for name in names if name != "chrf"))


def check_metrics(section: GeneratedPairSet, references: Sequence[Sequence[str]] | None = None) -> None:
    """Refuses, before anything is generated, metrics that cannot be computed.

    Raises:
        ValueError: when a package is missing, or a tokenizer does not suit the references.
    """
    if "bleu" in section.score:
        bleu_with(section.tokenize)
        check_language(section.tokenize, references or [], section.called)
    if "rouge" in section.score and references is not None:
        rouge_of(section).check([text for own in references for text in own], section.called)


def rouge_of(section: GeneratedPairSet) -> Rouge:
    """Returns ROUGE with the settings of a set."""
    return Rouge(section.rouge.tokens, section.rouge.stem)


class TextScores:
    """The scores of texts, and what each text adds to them.

    Args:
        section: its metrics and their settings.
        outputs: n texts.
        references: of each text, at least one.
        prefix: of the names of metrics, such as `lead_`.
    """

    def __init__(
        self,
        section: GeneratedPairSet,
        outputs: Sequence[str],
        references: Sequence[Sequence[str]],
        prefix: str = "",
    ) -> None:
        self._section, self._outputs, self._references, self._prefix = section, outputs, references, prefix
        self._corpus = [name for name in section.score if name != "rouge"]
        found = rouge_of(section).scores(outputs, references) if "rouge" in section.score else {}
        self._rouge = {kind: np.array([100 * one.fmeasure for one in scores]) for kind, scores in found.items()}

    def statistics(self) -> list[dict[str, tuple[float, ...]]]:
        """Returns the sufficient statistics of each text, by metric of sacrebleu."""
        found = corpus_statistics(self._outputs, self._references, self._section.tokenize, self._corpus)
        return [
            {self._prefix + name: rows[number] for name, rows in found.items()} for number in range(len(self._outputs))
        ]

    def measures(self) -> list[dict[str, tuple[float, float]]]:
        """Returns ROUGE of each text, in percent, over 1."""
        return [
            {self._prefix + kind: (float(values[number]), 1.0) for kind, values in self._rouge.items()}
            for number in range(len(self._outputs))
        ]

    def results(self, stamp: dict[str, Any], samples: int, chosen: Sequence[int] | None = None) -> list[Result]:
        """Returns the scores over all texts, or over those that are chosen by number.

        Args:
            stamp: fields of `Result` that describe the set.
            samples: bootstrap resamples of the intervals.
            chosen: numbers of texts.
        """
        numbers = range(len(self._outputs)) if chosen is None else chosen
        made = self._sacrebleu(numbers, stamp, samples) | self._rouges(numbers, stamp, samples)
        return [made[name] for name in metrics_of_set(self._section)]

    def _sacrebleu(self, numbers: Sequence[int], stamp: dict[str, Any], samples: int) -> dict[str, Result]:
        outputs, references = [self._outputs[one] for one in numbers], [self._references[one] for one in numbers]
        found, n = {}, len(outputs)
        scores = corpus_scores(outputs, references, self._section.tokenize, samples, self._corpus) if outputs else {}
        for name, (score, signature) in scores.items():
            # One pair, or pairs with equal scores, give no information on the spread.
            spread = n > 1 and score._ci > 0
            found[name] = Result(
                name=self._name(name),
                value=min(100.0, score.score),  # rounding can bring 100.00000000000004
                low=max(0.0, float(score._mean - score._ci)) if spread else None,
                high=min(100.0, float(score._mean + score._ci)) if spread else None,
                n=n,
                unit=_UNITS[name],
                higher_is_better=True,
                interval=f"sacrebleu's bootstrap over {n} pairs" if spread else no_interval(n, "pair"),
                signature=signature,
                **stamp,
            )
        return found

    def _rouges(self, numbers: Sequence[int], stamp: dict[str, Any], samples: int) -> dict[str, Result]:
        found, n = {}, len(numbers)
        most = max(len(self._references[one]) for one in numbers)
        for kind, every in self._rouge.items():
            values = every[list(numbers)]
            interval = bootstrap_ratio(values, np.ones(n), samples)
            found[kind] = Result(
                name=self._name(kind),
                value=float(values.sum() / n),
                low=interval[0] if interval else None,
                high=interval[1] if interval else None,
                n=n,
                unit=_UNITS[kind],
                higher_is_better=True,
                interval=f"bootstrap over {n} pairs, {samples} resamples" if interval else no_interval(n, "pair"),
                signature=rouge_of(self._section).signature(most, samples),
                **stamp,
            )
        return found

    def _name(self, metric: str) -> str:
        return f"{self._section.kind}/{self._section.name}/{self._prefix}{metric}"

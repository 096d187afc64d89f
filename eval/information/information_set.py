"""Scores a set of pairs by the bits that a source saves of its target: pointwise mutual information under the model.

For a source x and a target y it is log2 p(y | x) - log2 p(y). Its mean over pairs estimates the mutual information of
the two, as far as the model knows it. The control is the source of another pair: what it saves too is no knowledge of
the pair, but of what such targets look like.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from configs.schema.pair_sets import InformationSet
from data_prep.decontamination.evaluation_sets import set_key
from data_prep.decontamination.pair_files import TextPair, read_all_pairs
from data_prep.tokens.vocab import Vocab
from eval.contamination import Mask, labelled, split
from eval.information.code_lengths import CodeLengths, Readings, read_code_lengths
from eval.information.draws import SEED, draw
from eval.information.score_names import METRICS
from eval.items.item import Item, beginning, hash_of, shared_seconds
from eval.pairs.prompts import without_shots
from eval.parts import Scored
from eval.reading.reader import Reader
from eval.reading.windows import Report
from eval.results import Result
from eval.statistics import bootstrap_ratio, no_interval, wilson

if TYPE_CHECKING:
    from data_prep.decontamination.decontaminate import Touched

# Bits that differ by less are a tie: sums of many logarithms in fp32 are no more exact.
TIE = 1e-3
_CHARACTERS = 500  # of a candidate that is shown
Floats = npt.NDArray[np.float64]
# Numerators and denominators of a score, (n,) each.
_Ratio = tuple[Floats, Floats]

# Of the control: they depend on which pairs there are to draw from.
_DRAWN = {"other_bits", "other_saved_bits", "beyond_other_bits", "matching_accuracy"}


def read_information_set(section: InformationSet) -> tuple[list[TextPair], list[TextPair]]:
    """Reads the set; returns the solved examples and the pairs to score.

    Raises:
        ValueError: when the file or a field is missing, a text is empty, or no pair is left to score.
    """
    pairs = read_all_pairs(section)
    for number, pair in enumerate(pairs, start=1):
        for field, text in ((section.source_field, pair.source), (section.target_field, pair.target)):
            if not text.strip():
                raise ValueError(
                    f"{section.called}: item {number} of {section.path} has an empty `{field}`, which says nothing and "
                    "has no code length; correct it, or take it out"
                )
    return without_shots(section, pairs, max(section.shots))


def information_results(
    section: InformationSet,
    reader: Reader,
    vocab: Vocab,
    bootstrap_samples: int,
    report: Report | None = None,
    touched: Touched | None = None,
) -> Scored:
    """Scores a set for each number of solved examples, with the items that the scores are made of.

    If `touched` knows the set, touched and clean pairs are also scored separately.

    Raises:
        ValueError: as `read_information_set`, `draw` and `read_code_lengths`.
    """
    examples, pairs = read_information_set(section)
    draws = draw(pairs, section.candidates, section.called)
    began = time.perf_counter()
    readings = read_code_lengths(section, examples, pairs, draws, reader, vocab, report)
    seconds = time.perf_counter() - began
    scored = [pairs[number] for number in readings.kept]
    ratios = {shots: _ratios(lengths, section.candidates) for shots, lengths in readings.lengths.items()}
    passages = [(pair.source, pair.target) for pair in scored]
    masks = split(touched, f"information/{section.name}", passages)
    note = _left_out(section, len(pairs) - len(scored), len(pairs), reader.context_length)
    drawn_from = set_key((pair.source, pair.target) for pair in pairs)[:8]
    results: list[Result] = []
    for part, mask in {"": np.ones(len(scored), dtype=bool), **masks}.items():
        stamp = {"note": note, "set": set_key(passages[number] for number in np.flatnonzero(mask))}
        for shots, own in ratios.items():
            settings = _settings(section, examples[:shots])
            made = []
            for metric, (above, below) in own.items():
                drawn = {"drawn from": drawn_from, "seed": SEED} if metric in _DRAWN else {}
                full = {**stamp, "settings": settings | drawn}
                made.append(_result(section, shots, metric, (above[mask], below[mask]), bootstrap_samples, full))
            results += labelled(made, part) if part else made
    return Scored(results, items=_items(section, pairs, readings, draws.candidates, ratios, masks, seconds))


def _ratios(lengths: CodeLengths, candidates: int | None) -> dict[str, _Ratio]:
    """Returns what each score is made of."""
    ones = np.ones(len(lengths.alone))
    found = {
        "saved_bits": (lengths.alone - lengths.given, ones),
        "saved_share": (lengths.alone - lengths.given, lengths.alone),
        "alone_bits": (lengths.alone, ones),
        "given_bits": (lengths.given, ones),
        "other_bits": (lengths.other, ones),
        "other_saved_bits": (lengths.alone - lengths.other, ones),
        "beyond_other_bits": (lengths.other - lengths.given, ones),
    }
    return found if candidates is None else {**found, "matching_accuracy": (matched(lengths.saved), ones)}


def matched(saved: Floats) -> Floats:
    """Returns for each row 1 where the first column is the largest, else 0; of k columns that tie, 1 / k.

    Args:
        saved: (n, N) bits that a source saves of N targets; the first one is its own.

    Returns:
        (n,) shares of a right choice; guessing gives 1 / N on average.
    """
    best = saved >= saved.max(axis=1, keepdims=True) - TIE
    share: Floats = best[:, 0] / best.sum(axis=1)
    return share


def _left_out(section: InformationSet, count: int, total: int, context_length: int) -> str | None:
    if not count:
        return None
    return (
        f"{count:,} of {total:,} pairs left out, because they or what is read beside them are longer than the context "
        f"of {context_length} tokens with {max(section.shots)} solved examples"
    )


def _settings(section: InformationSet, examples: Sequence[TextPair]) -> dict[str, Any]:
    return {
        "normalize": section.normalize,
        "shots": len(examples),
        "labels": f"{section.source_label}, {section.target_label}",
        "examples": set_key((pair.source, pair.target) for pair in examples)[:8],
    }


def _result(
    section: InformationSet, shots: int, metric: str, ratio: _Ratio, samples: int, stamp: dict[str, Any]
) -> Result:
    """Makes a score; `stamp`: its note, the key of its set, and settings."""
    above, below = ratio
    n, value = len(above), float(above.sum() / below.sum())
    unit, higher, meaning = METRICS[metric]
    chooses = metric == "matching_accuracy"
    interval = wilson(float(above.sum()), n) if chooses else bootstrap_ratio(above, below, samples)
    method = f"{'Wilson' if chooses else 'bootstrap'} over {n} pairs"
    guessed = section.candidates if chooses else None
    among = f"of {guessed} candidates; of k that tie, each counts 1 / k" if guessed else None
    return Result(
        name=f"information/{section.name}/{metric}/{shots}-shot",
        value=value,
        low=interval[0] if interval else None,
        high=interval[1] if interval else None,
        n=n,
        unit=unit,
        higher_is_better=higher,
        interval=method if interval else no_interval(n, "pair"),
        chance=1 / guessed if guessed else None,
        note="; ".join(filter(None, [meaning, among, stamp["note"]])),
        set=stamp["set"],
        settings=stamp["settings"] | ({"candidates": guessed} if guessed else {}),
    )


# --------------------------------------------------------------------------------------------------------------- items
def _items(
    section: InformationSet,
    pairs: Sequence[TextPair],
    readings: Readings,
    drawn: Sequence[Sequence[int]],
    ratios: dict[int, dict[str, _Ratio]],
    masks: dict[str, Mask],
    seconds: float,
) -> list[Item]:
    """Returns an item for each scored pair. Its choices are those of the largest number of solved examples."""
    took = shared_seconds(seconds, readings.tokens)
    last = readings.lengths[max(section.shots)]
    items = []
    for place, number in enumerate(readings.kept):
        pair, wrong = pairs[number], drawn[number]
        choices = tuple(beginning(text, _CHARACTERS) for text in (pair.target, *(pairs[one].target for one in wrong)))
        chosen = int(last.saved[place].argmax())
        items.append(
            Item(
                id=str(number + 1),
                hash=hash_of(pair.source, pair.target),
                asked=beginning(pair.source),
                reference=choices[0] if wrong else beginning(pair.target),
                answer=choices[chosen] if wrong else None,
                choices=choices if wrong else (),
                log_likelihoods=tuple(-np.log(2) * last.candidates[place]) if wrong else (),
                bytes=len(pair.target.encode("utf-8", "replace")),
                tokens=readings.tokens[place],
                seconds=took[place],
                measures={
                    f"{metric}/{shots}-shot": (float(above[place]), float(below[place]))
                    for shots, own in ratios.items()
                    for metric, (above, below) in own.items()
                },
                tags=tuple(part for part, mask in masks.items() if mask[place]),
            )
        )
    return items

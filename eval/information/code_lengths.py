"""Reads targets alone, behind their sources and behind other sources, and returns their code lengths in bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from configs.schema.pair_sets import InformationSet
from data_prep.decontamination.pair_files import TextPair
from data_prep.tokens.vocab import Vocab
from eval.information.draws import DrawnPairs
from eval.pairs.prompts import build_prompt, target_text
from eval.reading.reader import Reader
from eval.reading.windows import Report, Window

Floats = npt.NDArray[np.float64]
# A window is found by shots, the pair whose source is read (None: no source), and the pair whose target is scored.
_Key = tuple[int, int | None, int]


@dataclass(frozen=True)
class CodeLengths:
    """Bits of the targets of n scored pairs, behind one number of solved examples.

    Attributes:
        alone: (n,) without a source.
        given: (n,) behind their own source.
        other: (n,) behind the source of another pair.
        saved: (n, N) bits that the source of a pair saves of its own target, and of the candidates; (n, 1) without.
        candidates: (n, N) bits of these targets behind the source.
    """

    alone: Floats
    given: Floats
    other: Floats
    saved: Floats
    candidates: Floats


@dataclass(frozen=True)
class Readings:
    """What reading a set gives.

    Attributes:
        kept: numbers of the pairs that are scored.
        tokens: of the target of each of them.
        lengths: number of solved examples -> code lengths of the pairs that are scored.
    """

    kept: list[int]
    tokens: list[int]
    lengths: dict[int, CodeLengths]


def read_code_lengths(
    section: InformationSet,
    examples: Sequence[TextPair],
    pairs: Sequence[TextPair],
    draws: DrawnPairs,
    reader: Reader,
    vocab: Vocab,
    report: Report | None = None,
) -> Readings:
    """Reads a set. A pair that does not fit the context with each number of examples is left out of all.

    Args:
        section: the set.
        examples: solved ones, as many as the largest number of shots.
        pairs: those to score.
        draws: what is read beside them.
        reader: of the model.
        vocab: its vocabulary.
        report: receives the number of read windows.

    Raises:
        ValueError: when the vocabulary lacks characters of a target, or no pair fits the context.
    """
    targets = [_target_ids(section, number, pair, vocab) for number, pair in enumerate(pairs, start=1)]
    prompts = {
        (shots, number): vocab.prompt(
            build_prompt(section, examples[:shots], None if number is None else pairs[number].source)
        )
        for shots in section.shots
        for number in (None, *range(len(pairs)))
    }

    def keys_of(number: int) -> list[_Key]:
        asked = [(None, number), (number, number), (draws.other[number], number)]
        asked += [(source, wrong) for wrong in draws.candidates[number] for source in (None, number)]
        return [(shots, source, target) for shots in section.shots for source, target in asked]

    def fits(key: _Key) -> bool:
        shots, source, target = key
        return len(prompts[shots, source]) + len(targets[target]) - 1 <= reader.context_length

    asked = {number: keys_of(number) for number in range(len(pairs))}
    kept = [number for number, keys in asked.items() if all(map(fits, keys))]
    if not kept:
        raise ValueError(
            f"{section.called}: none of the {len(pairs)} pairs fits model.context_length {reader.context_length} with "
            f"{max(section.shots)} solved examples; lower shots, or give it shorter pairs"
        )
    keys = list(dict.fromkeys(key for number in kept for key in asked[number]))
    windows = [_window(prompts[shots, source], targets[target]) for shots, source, target in keys]
    bits = {key: score.nats / math.log(2) for key, score in zip(keys, reader.score(windows, report), strict=True)}
    lengths = {shots: _code_lengths(bits, shots, kept, draws) for shots in section.shots}
    return Readings(kept, [len(targets[number]) for number in kept], lengths)


def _target_ids(section: InformationSet, number: int, pair: TextPair, vocab: Vocab) -> list[int]:
    """Returns the ids of a target as it follows a prompt: the same behind any."""
    ids = vocab.encode_inside(target_text(section, pair.target))
    if lost := vocab.lost(pair.target.strip(), ids):
        raise ValueError(
            f"{section.called}: pair {number} has {lost:,} bytes of its target in characters that the tokenizer lacks, "
            "so its code length would be too short. Is the target in a language that the model was not trained on? "
            "Use a tokenizer with a byte fallback, or another set"
        )
    return ids


def _window(prompt: Sequence[int], target: Sequence[int]) -> Window:
    return Window(np.array([*prompt, *target], dtype=np.int64), len(target))


def _code_lengths(bits: dict[_Key, float], shots: int, kept: Sequence[int], draws: DrawnPairs) -> CodeLengths:
    def of(source: int | None, target: int) -> float:
        return bits[shots, source, target]

    choices = [[number, *draws.candidates[number]] for number in kept]
    given = [[of(number, one) for one in row] for number, row in zip(kept, choices, strict=True)]
    alone = [[of(None, one) for one in row] for row in choices]
    return CodeLengths(
        np.array([row[0] for row in alone]),
        np.array([row[0] for row in given]),
        np.array([of(draws.other[number], number) for number in kept]),
        np.array(alone) - np.array(given),
        np.array(given),
    )

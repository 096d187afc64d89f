"""Chooses sentences by code length: those whose presence saves most bits of the rest of their document.

With kept sentences K and the rest R of a document, saved bits are L(R) - L(R | K). L is the code length under the
model: -log2 of the probability. K and R are in the order of the document, and K stands before R. *Kept information* is
the saved bits over L(K), so it tells what a bit that was kept says about what was left out. BottleSum (West et al.,
arXiv:1909.07405) keeps what predicts the next sentence in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.tokens.vocab import Vocab
from eval.reading.reader import Reader
from eval.reading.windows import Report, Window


@dataclass(frozen=True)
class CodedDocument:
    """The tokens of a document.

    Attributes:
        units: ids of each sentence with the line end behind it. They are the same wherever the sentence stands.
        start: ids that texts begin with.
        count: sentences that were offered; the last ones are left out where the context ends.
    """

    units: tuple[tuple[int, ...], ...]
    start: tuple[int, ...]
    count: int

    def sequence(self, numbers: Sequence[int]) -> list[int]:
        """Returns the ids of sentences, in the given order."""
        return [token for number in numbers for token in self.units[number]]


@dataclass(frozen=True)
class KeptSentences:
    """What some kept sentences say of the rest of their document.

    Attributes:
        numbers: of the sentences, in order.
        saved_bits: of the rest, by their presence; it can be negative.
        kept_bits: code length of the kept sentences.
    """

    numbers: tuple[int, ...]
    saved_bits: float
    kept_bits: float


def coded(sentences: Sequence[str], vocab: Vocab, context_length: int) -> CodedDocument:
    """Encodes sentences, as many as fit a context together."""
    start: list[int] = vocab.template[0] or [vocab.begin_id]
    units: list[tuple[int, ...]] = []
    used = 0
    for sentence in sentences:
        ids = tuple(vocab.encode(f"{sentence}\n"))
        if len(start) + used + len(ids) > context_length:
            break
        units.append(ids)
        used += len(ids)
    return CodedDocument(tuple(units), tuple(start), len(sentences))


def weighed(
    choices: Sequence[tuple[CodedDocument, Sequence[int]]], reader: Reader, report: Report | None = None
) -> list[KeptSentences]:
    """Returns what choices of sentences say of the rest of their documents.

    Args:
        choices: document and numbers of kept sentences in order: at least one, and not all.
        reader: asks the model. Equal beginnings are read once.
        report: receives progress.
    """
    windows = []
    for document, numbers in choices:
        rest = document.sequence([one for one in range(len(document.units)) if one not in set(numbers)])
        kept, start = document.sequence(numbers), list(document.start)
        windows += [_window(start, rest), _window([*start, *kept], rest), _window(start, kept)]
    bits = [score.nats / math.log(2) for score in reader.score(windows, report)]
    return [
        KeptSentences(tuple(numbers), bits[3 * place] - bits[3 * place + 1], bits[3 * place + 2])
        for place, (_, numbers) in enumerate(choices)
    ]


def _window(before: Sequence[int], scored: Sequence[int]) -> Window:
    return Window(np.array([*before, *scored], dtype=np.int64), len(scored))


def most_informative(
    documents: Sequence[CodedDocument], most: int, reader: Reader, report: Report | None = None
) -> list[tuple[int, ...]]:
    """Chooses sentences of each document greedily: at each step the one with which most bits of the rest are saved.

    Args:
        documents: with at least two sentences each.
        most: largest number of sentences of a document; one always stays in the rest.
        reader: asks the model.
        report: receives progress, in steps.

    Returns:
        Numbers of the chosen sentences of each document, in order.
    """
    chosen: list[tuple[int, ...]] = [() for _ in documents]
    for step in range(most):
        offered = [
            (place, tuple(sorted((*chosen[place], number))))
            for place, document in enumerate(documents)
            if len(document.units) > step + 1
            for number in range(len(document.units))
            if number not in chosen[place]
        ]
        found = weighed([(documents[place], numbers) for place, numbers in offered], reader)
        best: dict[int, KeptSentences] = {}
        for (place, _), kept in zip(offered, found, strict=True):
            if place not in best or kept.saved_bits > best[place].saved_bits:
                best[place] = kept
        for place, kept in best.items():
            chosen[place] = kept.numbers
        if report is not None:
            report(step + 1, total=most)
    return chosen

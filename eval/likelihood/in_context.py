"""Measures what a model gains from its context: the loss late in the context minus the loss early in it.

Olsson et al. (arXiv:2209.11895) call the loss of the 500th token minus that of the 50th the in-context learning score.
Here whole quarters are compared. Documents are cut into pieces of `context` + 1 tokens, whose first token is read only.
Late is the mean loss of the last quarter of a piece's targets, early that of the first. A negative difference says that
the model predicts better the more it has read.

The control asks whether it is the context or merely the place: the same late targets are scored again, where everything
before them is of another document. Each then sees as many tokens of its own document as an early target does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from data_prep.tokens.vocab import Vocab
from eval.items.item import Item
from eval.likelihood.conventions import Convention
from eval.likelihood.perplexity import FEW_DOCUMENTS, SetScores, sequences
from eval.reading.reader import Reader
from eval.reading.windows import Report, Tokens, Window
from eval.results import Result
from eval.statistics import bootstrap_ratio, no_interval

LATE_MINUS_EARLY = "late_minus_early_nats"
OTHER_MINUS_EARLY = "other_minus_early_nats"
IN_CONTEXT = (LATE_MINUS_EARLY, OTHER_MINUS_EARLY)


@dataclass(frozen=True)
class Gains:
    """Differences of summed nats, late minus early, with a row for each piece.

    Attributes:
        document: (pieces,) index of the document.
        own: (pieces,) where the context is the document's own.
        other: (pieces,) where it is another document's; None where there is only one document.
        targets: in a quarter of a piece.
        context: tokens of a piece that are read.
    """

    document: npt.NDArray[np.int64]
    own: npt.NDArray[np.float64]
    other: npt.NDArray[np.float64] | None
    targets: int
    context: int

    def columns(self) -> dict[str, npt.NDArray[np.float64]]:
        """Metric -> (pieces,) differences."""
        found = {LATE_MINUS_EARLY: self.own}
        return found if self.other is None else {**found, OTHER_MINUS_EARLY: self.other}

    def sums(self, metric: str) -> SetScores:
        """The differences of a metric as sums per piece, for what resamples documents."""
        count = np.full(len(self.own), float(self.targets))
        return SetScores(self.document, self.columns()[metric], count, count)


def score_gains(
    reader: Reader, vocab: Vocab, texts: Sequence[str], how: Convention, report: Report | None = None
) -> Gains:
    """Scores the first and the last quarter of every whole piece.

    Raises:
        ValueError: for a context of less than 4 tokens, which has no quarters, and where no document fills the context.
    """
    if how.context < 4:
        raise ValueError(f"late_minus_early needs a context of 4 tokens or more, not {how.context}")
    size, quarter = how.context + 1, how.context // 4
    pieces: list[tuple[int, Tokens]] = []
    longest = 0
    for document, (ids, _) in enumerate(sequences(vocab, texts, how)):
        longest = max(longest, len(ids))
        pieces += [(document, ids[at : at + size]) for at in range(0, len(ids) - size + 1, size)]
    if not pieces:
        raise ValueError(
            f"late_minus_early needs a document of {size:,} tokens, and the longest has {longest:,}; set a shorter "
            "`context`, join the documents by `stream: text`, or drop `late_minus_early`"
        )
    windows = [Window(piece[: quarter + 1], quarter) for _, piece in pieces]
    windows += [Window(piece, quarter) for _, piece in pieces]
    windows += [Window(piece, quarter) for piece in _in_other_context(pieces, size - quarter - 1)]
    nats = np.array([score.nats for score in reader.score(windows, report)]).reshape(-1, len(pieces))
    documents = np.array([document for document, _ in pieces])
    other = nats[2] - nats[0] if len(nats) > 2 else None
    return Gains(documents, nats[1] - nats[0], other, quarter, how.context)


def _in_other_context(pieces: Sequence[tuple[int, Tokens]], foreign: int) -> list[Tokens]:
    """The pieces with their first `foreign` tokens taken from the next document; empty where there is only one."""
    by_document: dict[int, list[Tokens]] = {}
    for document, piece in pieces:
        by_document.setdefault(document, []).append(piece)
    if len(by_document) < 2:
        return []
    documents = list(by_document)
    found = []
    for number, document in enumerate(documents):
        others = by_document[documents[(number + 1) % len(documents)]]
        for index, piece in enumerate(by_document[document]):
            found.append(np.concatenate([others[index % len(others)][:foreign], piece[foreign:]]))
    return found


def gain_results(name: str, gains: Gains, bootstrap_samples: int) -> list[Result]:
    """Computes the mean differences in nats per token, with intervals over documents."""
    results = []
    for metric in gains.columns():
        sums, units = gains.sums(metric).units()
        interval = bootstrap_ratio(sums.nats, sums.tokens, bootstrap_samples)
        what = "late targets after another document" if metric == OTHER_MINUS_EARLY else "late targets"
        results.append(
            Result(
                name=f"perplexity/{name}/{metric}",
                value=float(sums.nats.sum() / sums.tokens.sum()),
                low=interval[0] if interval else None,
                high=interval[1] if interval else None,
                n=sums.documents,
                unit="nats per token",
                higher_is_better=False,
                interval=f"bootstrap over {units}" if interval else no_interval(len(sums.nats), "unit"),
                note=f"{what} minus early ones, {gains.targets} each, in {len(gains.own):,} pieces of "
                f"{gains.context} tokens",
            )
        )
    return results


def with_gains(items: Sequence[Item], order: Sequence[int], gains: Gains) -> list[Item]:
    """Adds the differences to the items of those documents that have a piece.

    Args:
        items: of documents.
        order: index of the document of each item, as in `gains.document`.
        gains: of these documents.
    """
    few = gains.sums(LATE_MINUS_EARLY).documents < FEW_DOCUMENTS
    out = []
    for item, document in zip(items, order, strict=True):
        own = gains.document == document
        count = float(own.sum() * gains.targets)
        if not count:
            out.append(item)
            continue
        columns = {metric: column[own] for metric, column in gains.columns().items()}
        measures = {metric: (float(column.sum()), count) for metric, column in columns.items()}
        units = {
            metric: tuple(value for gain in column.tolist() for value in (gain, float(gains.targets)))
            for metric, column in columns.items()
            if few
        }
        out.append(replace(item, measures={**item.measures, **measures}, units={**item.units, **units}))
    return out

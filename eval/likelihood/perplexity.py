"""Computes perplexity and bits per byte of sets of whole documents.

A document's first token is conditioned on the begin token (in models trained here, the end-of-document token). The end
of the document is not scored, because a compressor of the same bytes does not store it either. Bits per byte = nats /
ln 2 / UTF-8 bytes of the normalised text. This unit does not depend on the vocabulary. Perplexity is per token, so it
can be compared for one tokenizer only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.tokens.vocab import Vocab
from eval.reading.reader import Reader
from eval.reading.windows import Report, Window, sliding_windows
from eval.results import Items, Result
from eval.statistics import Interval, bootstrap_ratio, no_interval

# With fewer documents, the interval is computed over windows instead.
FEW_DOCUMENTS = 20

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SetScores:
    """Sums per window, shape (windows,) each: document index, nats, tokens and bytes of text scored."""

    document: npt.NDArray[np.int64]
    nats: Floats
    tokens: Floats
    bytes: Floats

    def units(self) -> tuple[Floats, Floats, Floats, str]:
        """Returns nats, tokens and bytes of the resampled units (documents or windows), and their description."""
        documents = int(self.document.max()) + 1
        if documents < FEW_DOCUMENTS:
            return self.nats, self.tokens, self.bytes, f"{len(self.nats)} windows of {documents} documents"
        nats, tokens, size = (
            np.bincount(self.document, weights=sums).astype(np.float64) for sums in (self.nats, self.tokens, self.bytes)
        )
        return nats, tokens, size, f"{documents} documents"

    def of(self, documents: npt.NDArray[np.bool_]) -> SetScores:
        """Selects the scores of some documents, by a mask of shape (documents,)."""
        chosen = documents[self.document]
        numbers = np.cumsum(documents) - 1
        return SetScores(numbers[self.document[chosen]], self.nats[chosen], self.tokens[chosen], self.bytes[chosen])


def score_texts(
    reader: Reader, vocab: Vocab, texts: Sequence[str], stride: int, report: Report | None = None
) -> SetScores:
    """Scores texts with a window of the model's context that moves by `stride` tokens.

    Raises:
        ValueError: when the tokenizer cannot represent all characters of a text.
    """
    windows: list[Window] = []
    documents: list[int] = []
    sizes: list[int] = []
    for index, text in enumerate(texts):
        ids = np.array([vocab.begin_id, *vocab.encode(text)], dtype=np.int64)
        lengths = vocab.token_bytes[ids]
        prefix = vocab.prefix_bytes(text)
        if (total := lengths[1:].sum() - prefix) != len(text.encode()):
            raise ValueError(
                f"document {index + 1} has {len(text.encode()):,} bytes, its tokens represent {total:,}: "
                "the tokenizer lacks some characters, and bits per byte would be wrong. Use one with a byte fallback."
            )
        done = 1
        for window in sliding_windows(ids, 1, reader.context_length, stride):
            windows.append(window)
            documents.append(index)
            sizes.append(int(lengths[done : done + window.scored].sum()) - (prefix if done == 1 else 0))
            done += window.scored
    scores = reader.score(windows, report)
    return SetScores(
        np.array(documents),
        np.array([score.nats for score in scores]),
        np.array([window.scored for window in windows], dtype=np.float64),
        np.array(sizes, dtype=np.float64),
    )


def perplexity_results(name: str, scores: SetScores, stride: int, bootstrap_samples: int) -> list[Result]:
    """Computes bits per byte, perplexity and nats per token of a scored set, with intervals over its documents."""
    nats, tokens, size, units = scores.units()
    by_byte, by_token = (bootstrap_ratio(nats, weights, bootstrap_samples) for weights in (size, tokens))
    # metric, unit, ratio of nats, its interval, conversion to the value
    kinds: list[tuple[str, str, float, Interval | None, Callable[[float], float]]] = [
        ("bits_per_byte", "bits per byte of normalised text", nats.sum() / size.sum(), by_byte, _bits),
        ("perplexity", "perplexity per token", nats.sum() / tokens.sum(), by_token, _exp),
        ("nats_per_token", "nats per token", nats.sum() / tokens.sum(), by_token, float),
    ]
    return [
        Result(
            name=f"perplexity/{name}/{metric}",
            value=convert(ratio),
            low=convert(interval[0]) if interval else None,
            high=convert(interval[1]) if interval else None,
            n=int(scores.document.max()) + 1,
            unit=unit,
            higher_is_better=False,
            interval=f"bootstrap over {units}" if interval else no_interval(len(nats), "unit"),
            note=f"{int(size.sum()):,} bytes, {int(tokens.sum()):,} tokens, {stride} new tokens per window"
            + ("" if math.isfinite(convert(ratio)) else f"; e to the power of {ratio:,.0f} is beyond any number here"),
            items=Items((nats / math.log(2)).tolist(), size.tolist()) if convert is _bits else None,
        )
        for metric, unit, ratio, interval, convert in kinds
    ]


def _bits(nats: float) -> float:
    return nats / math.log(2)


def _exp(nats: float) -> float:
    """Computes e to the power of `nats`; infinite above 709, where a float overflows."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf

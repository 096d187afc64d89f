"""Computes perplexity and bits per byte of sets of whole documents.

What the model reads and what is scored is a `Convention` of the set. By default a document's first token is conditioned
on the begin token (in models trained here, the end-of-document token). The end of the document is not scored, because a
compressor of the same bytes does not store it either. Bits per byte = nats / ln 2 / UTF-8 bytes of the text. This unit
does not depend on the vocabulary. Perplexity is per token, so it can be compared for one tokenizer only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from data_prep.tokens.vocab import Vocab
from eval.likelihood.conventions import Convention, Counted, count_words
from eval.reading.reader import Reader
from eval.reading.windows import Report, Window
from eval.results import Result
from eval.statistics import Interval, bootstrap_ratio, no_interval

# With fewer documents, the interval is computed over windows instead.
FEW_DOCUMENTS = 20

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class LostBytes(ValueError):
    """The tokens of a document do not represent all its bytes.

    Attributes:
        document: index of it.
    """

    def __init__(self, document: int, message: str) -> None:
        super().__init__(message)
        self.document = document


@dataclass(frozen=True)
class SetScores:
    """Sums per window, shape (windows,) each: document index, nats, tokens, bytes and words of text scored.

    A document of which no token is scored has no window. `variance` is that of the nats, where they are estimated.
    """

    document: npt.NDArray[np.int64]
    nats: Floats
    tokens: Floats
    bytes: Floats
    words: Floats | None = None
    variance: Floats | None = None

    @property
    def documents(self) -> int:
        """Number of documents with a scored token."""
        return len(np.unique(self.document))

    def units(self) -> tuple[SetScores, str]:
        """Returns the sums of the resampled units (documents or windows), and their description."""
        if self.documents < FEW_DOCUMENTS:
            some = "1 document" if self.documents == 1 else f"{self.documents} documents"
            return self, f"{len(self.nats)} windows of {some}"
        numbers, of = np.unique(self.document, return_inverse=True)
        sums = [
            None if column is None else np.bincount(of, weights=column).astype(np.float64)
            for column in (self.nats, self.tokens, self.bytes, self.words)
        ]
        nats, tokens, size, words = sums
        assert nats is not None and tokens is not None and size is not None
        return SetScores(numbers, nats, tokens, size, words), f"{len(numbers)} documents"

    def of(self, documents: npt.NDArray[np.bool_]) -> SetScores:
        """Selects the scores of some documents, by a mask of shape (documents,)."""
        chosen = documents[self.document]
        numbers = np.cumsum(documents) - 1
        return SetScores(
            numbers[self.document[chosen]],
            self.nats[chosen],
            self.tokens[chosen],
            self.bytes[chosen],
            None if self.words is None else self.words[chosen],
            None if self.variance is None else self.variance[chosen],
        )


def score_texts(
    reader: Reader, vocab: Vocab, texts: Sequence[str], how: Convention, report: Report | None = None
) -> SetScores:
    """Scores texts in windows of `how.context` tokens; see `Convention`.

    Raises:
        LostBytes: when the tokenizer cannot represent all characters of a text.
        ValueError: when no token is to be scored.
    """
    windows: list[Window] = []
    documents: list[int] = []
    sizes: list[int] = []
    for index, (ids, lengths) in enumerate(sequences(vocab, texts, how)):
        for window, first in how.windows(ids):
            windows.append(window)
            documents.append(index)
            sizes.append(int(lengths[first : first + window.scored].sum()))
    if not windows:
        raise ValueError(
            "no token is to be scored: each text has a single token and no begin token, or is shorter than a full "
            "piece; set `start_token: begin`, `windows: sliding` or `stream: text`"
        )
    scores = reader.score(windows, report)
    return SetScores(
        np.array(documents),
        np.array([score.nats for score in scores]),
        np.array([window.scored for window in windows], dtype=np.float64),
        np.array(sizes, dtype=np.float64),
        variance=np.array([score.variance for score in scores]) if any(score.variance for score in scores) else None,
    )


def sequences(vocab: Vocab, texts: Sequence[str], how: Convention) -> Iterator[tuple[Ints, Ints]]:
    """Yields the ids of each sequence that windows are cut from, and the bytes that each stands for, (n,) both."""
    encoded: Iterator[tuple[Ints, Ints]] = (_encoded(vocab, index, text) for index, text in enumerate(texts))
    if how.joined:
        encoded = iter([_joined(list(encoded), vocab.eod_id)])
    for ids, lengths in encoded:
        yield (np.insert(ids, 0, vocab.begin_id), np.insert(lengths, 0, 0)) if how.start else (ids, lengths)


def _joined(encoded: Sequence[tuple[Ints, Ints]], separator: int) -> tuple[Ints, Ints]:
    """Joins sequences by a token that stands for no bytes."""
    parts = [part for one in encoded for part in ((np.array([separator]), np.array([0])), one)][1:]
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([lengths for _, lengths in parts])


def _encoded(vocab: Vocab, index: int, text: str) -> tuple[Ints, Ints]:
    """Returns the tokens of a text and the bytes of the text that each stands for.

    Raises:
        LostBytes: when the tokens do not represent all bytes.
    """
    ids = np.array(vocab.encode(text), dtype=np.int64)
    lengths: Ints = vocab.token_bytes[ids].astype(np.int64)
    if len(ids):
        lengths[0] -= vocab.prefix_bytes(text)  # of a space that the tokenizer puts before the text
    if (total := lengths.sum()) != len(text.encode()):
        raise LostBytes(
            index,
            f"document {index + 1} has {len(text.encode()):,} bytes, its tokens represent {total:,}: "
            "the tokenizer lacks some characters, and bits per byte would be wrong. Use one with a byte fallback.",
        )
    return ids, lengths


def counted(scores: SetScores, texts: Sequence[Counted], words: str = "none", joined: bool = False) -> SetScores:
    """Returns the scores with the bytes, and at will the words, of the texts as they are counted.

    A document has the bytes of its text as it stands, even where the model read it without the blanks of a
    tokenization. They are shared out over its windows by the bytes that each scored, and so are words.

    Args:
        scores: of `texts` as they are read.
        texts: what was scored.
        words: rule of `count_words`; `none` leaves words out.
        joined: all texts were scored as one.
    """
    columns = [[len(text.text.encode()), len(text.read.encode())] for text in texts]
    if words != "none":
        columns = [[*sizes, count_words(text.text, words)] for sizes, text in zip(columns, texts, strict=True)]
    totals = np.array(columns, dtype=np.float64)  # (documents, 2 or 3)
    totals = totals.sum(axis=0, keepdims=True) if joined else totals
    ratio = totals[:, 0] / np.maximum(totals[:, 1], 1)
    size = scores.bytes * ratio[scores.document]
    if words == "none":
        return replace(scores, bytes=size)
    scored = np.bincount(scores.document, weights=scores.bytes, minlength=len(totals))
    share = scores.bytes / np.maximum(scored, 1)[scores.document]
    return replace(scores, bytes=size, words=share * totals[:, 2][scores.document])


def perplexity_results(
    name: str, scores: SetScores, stride: int | str, bootstrap_samples: int, of: str = ""
) -> list[Result]:
    """Computes bits per byte, perplexity and nats per token of a scored set, with intervals over its documents.

    Where words are counted, also perplexity per word and per byte. `stride` says how many tokens of a window are new,
    and `of` follows `byte` in the unit, such as ` of normalised text`.
    """
    sums, units = scores.units()
    nats, tokens, size = sums.nats, sums.tokens, sums.bytes
    by_byte, by_token = (bootstrap_ratio(nats, weights, bootstrap_samples) for weights in (size, tokens))
    # metric, unit, ratio of nats, its interval, conversion to the value
    kinds: list[tuple[str, str, float, Interval | None, Callable[[float], float]]] = [
        ("bits_per_byte", f"bits per byte{of}", nats.sum() / size.sum(), by_byte, _bits),
        ("perplexity", "perplexity per token", nats.sum() / tokens.sum(), by_token, _exp),
        ("nats_per_token", "nats per token", nats.sum() / tokens.sum(), by_token, float),
    ]
    if sums.words is not None and sums.words.any():
        by_word = bootstrap_ratio(nats, sums.words, bootstrap_samples)
        kinds += [
            ("word_perplexity", "perplexity per word", nats.sum() / sums.words.sum(), by_word, _exp),
            ("byte_perplexity", f"perplexity per byte{of}", nats.sum() / size.sum(), by_byte, _exp),
        ]
    error = 0.0 if scores.variance is None else math.sqrt(scores.variance.sum()) / scores.nats.sum()
    counts = f"{int(size.sum()):,} bytes, {int(tokens.sum()):,} tokens"
    counts += "" if sums.words is None else f", {round(sums.words.sum()):,} words"
    return [
        Result(
            name=f"perplexity/{name}/{metric}",
            value=convert(ratio),
            low=convert(interval[0]) if interval else None,
            high=convert(interval[1]) if interval else None,
            n=scores.documents,
            unit=unit,
            higher_is_better=False,
            interval=f"bootstrap over {units}" if interval else no_interval(len(nats), "unit"),
            note=f"{counts}, {stride} new tokens per window"
            + (f", standard error of the draws {convert(ratio * (1 + error)) - convert(ratio):.2g}" if error else "")
            + ("" if math.isfinite(convert(ratio)) else f"; e to the power of {ratio:,.0f} is beyond any number here"),
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

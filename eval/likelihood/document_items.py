"""Makes the items of a perplexity set: one for each document."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from eval.items.item import Item, beginning, hash_of, shared_seconds
from eval.likelihood.perplexity import FEW_DOCUMENTS, SetScores


def document_items(
    texts: Sequence[str],
    scores: SetScores,
    seconds: float = 0.0,
    parts: Mapping[str, npt.NDArray[np.bool_]] | None = None,
    ids: Sequence[str] | None = None,
) -> list[Item]:
    """Returns one item for each document with a scored token, with what it adds to bits per byte and the like.

    With few documents, each item also has its windows: the interval of the score is computed over them.

    Args:
        texts: all documents of the set, as they were scored.
        scores: of their windows.
        seconds: what all of them took.
        parts: subset -> mask (documents,), such as `clean` and `touched`.
        ids: of the documents; None: their numbers.
    """
    tokens = np.bincount(scores.document, weights=scores.tokens, minlength=len(texts))
    took = shared_seconds(seconds, tokens.tolist())
    ratios = {
        "bits_per_byte": (scores.nats / math.log(2), scores.bytes),
        "nats_per_token": (scores.nats, scores.tokens),
    }
    if scores.words is not None:
        ratios |= {"nats_per_word": (scores.nats, scores.words), "nats_per_byte": (scores.nats, scores.bytes)}
    order = np.argsort(scores.document, kind="stable")  # windows, by document
    ends = np.searchsorted(scores.document[order], np.arange(len(texts)), side="right")
    few = scores.documents < FEW_DOCUMENTS
    items = []
    for index, text in enumerate(texts):
        if not tokens[index]:
            continue
        own = order[ends[index - 1] if index else 0 : ends[index]]
        items.append(
            Item(
                id=ids[index] if ids else str(index + 1),
                hash=hash_of(text),
                asked=beginning(text),
                log_likelihoods=(-float(scores.nats[own].sum()),),
                bytes=round(scores.bytes[own].sum()),
                tokens=int(tokens[index]),
                seconds=took[index],
                measures={
                    name: (float(above[own].sum()), float(below[own].sum())) for name, (above, below) in ratios.items()
                },
                units={name: _in_turn(above[own], below[own]) for name, (above, below) in ratios.items() if few},
                tags=tuple(name for name, mask in (parts or {}).items() if mask[index]),
            )
        )
    return items


def _in_turn(above: npt.NDArray[np.float64], below: npt.NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.stack([above, below], axis=1).ravel().tolist())

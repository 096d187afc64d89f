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
) -> list[Item]:
    """Returns one item for each document, with what it adds to bits per byte and to nats per token.

    With few documents, each item also has its windows: the interval of the score is computed over them.

    Args:
        texts: all documents of the set, as they were scored.
        scores: of their windows.
        seconds: what all of them took.
        parts: subset -> mask (documents,), such as `clean` and `touched`.
    """
    nats, tokens, size = (
        np.bincount(scores.document, weights=sums, minlength=len(texts))
        for sums in (scores.nats, scores.tokens, scores.bytes)
    )
    took = shared_seconds(seconds, tokens.tolist())
    bits = scores.nats / math.log(2)
    stretches = [np.flatnonzero(scores.document == index) for index in range(len(texts))] if _few(texts) else []
    items = []
    for index, text in enumerate(texts):
        units = {}
        if stretches:
            own = stretches[index]
            units["bits_per_byte"] = _in_turn(bits[own], scores.bytes[own])
            units["nats_per_token"] = _in_turn(scores.nats[own], scores.tokens[own])
        items.append(
            Item(
                id=str(index + 1),
                hash=hash_of(text),
                asked=beginning(text),
                log_likelihoods=(-float(nats[index]),),
                bytes=int(size[index]),
                tokens=int(tokens[index]),
                seconds=took[index],
                measures={
                    "bits_per_byte": (float(nats[index]) / math.log(2), float(size[index])),
                    "nats_per_token": (float(nats[index]), float(tokens[index])),
                },
                units=units,
                tags=tuple(name for name, mask in (parts or {}).items() if mask[index]),
            )
        )
    return items


def _few(texts: Sequence[str]) -> bool:
    return len(texts) < FEW_DOCUMENTS


def _in_turn(above: npt.NDArray[np.float64], below: npt.NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.stack([above, below], axis=1).ravel().tolist())

"""An item: what was asked once, what came of it, and what it adds to each score.

A score is the sum of its items' numerators over the sum of their denominators. Scores of a whole corpus, such as BLEU,
have sufficient statistics instead, which are added up over the items before the score is computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MOST_CHARACTERS = 4000
_CUT = " …"


@dataclass(frozen=True)
class Item:
    """One item of an evaluation set: a document, a question, a pair, a conversation.

    Attributes:
        id: stable in its set: the record's id, lm-eval's `doc_id`, the number of the pair.
        hash: 16 hexadecimal digits of all that was asked and of its reference, see `hash_of`. Equal items of two runs
            have equal hashes.
        asked: prompt, question, source sentence, or the beginning of the document; see `beginning`.
        subject: the task or set that it belongs to, the second part of a score's name; empty: that of the part.
        reference: the right answer, a human translation, or the real continuation.
        answer: generated text, or the chosen option.
        choices: the options of a multiple-choice question, in order.
        log_likelihoods: nats, of each choice, or of the whole document.
        bytes, tokens: of what was scored: the document, or the answer.
        seconds: its share of the time that its batch took. It is no part of any comparison.
        measures: metric -> numerator and denominator. The metric is the rest of a score's name, such as `acc` or
            `exact_match/strict-match`.
        statistics: metric -> sufficient statistics of a score of the whole corpus, such as `bleu`.
        units: metric -> numerator and denominator of each stretch (n, d, n, d, …), where a score is resampled over
            stretches of documents, because there are few documents. Their sums are those of `measures`.
        tags: subsets that it belongs to, such as `clean` or `touched`; the last part of a score's name.
        notes: what else is worth knowing when one looks at it, such as `finish` -> `length`.
    """

    id: str
    hash: str
    asked: str
    subject: str = ""
    reference: str | None = None
    answer: str | None = None
    choices: tuple[str, ...] = ()
    log_likelihoods: tuple[float, ...] = ()
    bytes: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    measures: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    statistics: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    units: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)


def hash_of(*passages: str) -> str:
    """Returns 16 hexadecimal digits of an item's passages, uncut; they keep their borders."""
    text = "\x00".join(passages).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=8).hexdigest()


def beginning(text: str, most: int = MOST_CHARACTERS) -> str:
    """Returns the beginning of a text, at most `most` characters; halves of surrogate pairs become `?`."""
    kept = text if len(text) <= most else text[: most - len(_CUT)] + _CUT
    return kept.encode("utf-8", "replace").decode("utf-8")


def ending(text: str, most: int = MOST_CHARACTERS) -> str:
    """Returns the end of a text, at most `most` characters: of a few-shot prompt, the question stands there."""
    kept = text if len(text) <= most else _CUT.strip() + " " + text[len(_CUT) - most :]
    return kept.encode("utf-8", "replace").decode("utf-8")


def shared_seconds(seconds: float, weights: Sequence[float]) -> list[float]:
    """Divides the time of a batch over its items by weight, such as their numbers of tokens."""
    total = sum(weights)
    return [seconds * weight / total if total else seconds / len(weights) for weight in weights]

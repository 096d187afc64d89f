"""Gopher's rules on repetition (arXiv:2112.11446, table A1).

Fractions are of the text's characters, blanks included; datatrove judges paragraphs before lines, and so does this.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from configs.quality_rules import GopherRepetitionRules
from data_prep.quality.facts import TextFacts
from data_prep.quality.judgement import Drop, Judgement, above
from data_prep.quality.table import Int64, UInt64

_PARAGRAPH = re.compile(r"\n{2,}")
_LINE = re.compile(r"\n+")
_MIX = np.uint64(0xD6E8FEB86659FD93)


def gopher_repetition(settings: GopherRepetitionRules, facts: TextFacts) -> Judgement:
    """Repeated paragraphs and lines, the most frequent n-grams, repeated n-grams."""
    if not facts.text:
        return Drop("gopher_empty", "0 characters")
    return _parts(settings, facts) or _top(settings, facts) or _repeated_ngrams(settings, facts) or facts.text


def repeated(parts: Sequence[str]) -> tuple[int, int]:
    """Number and characters of the elements that came before."""
    distinct = set(parts)
    if len(distinct) == len(parts):
        return 0, 0
    return len(parts) - len(distinct), sum(map(len, parts)) - sum(map(len, distinct))


def _parts(settings: GopherRepetitionRules, facts: TextFacts) -> Drop | None:
    total = len(facts.text)
    paragraphs = _PARAGRAPH.split(facts.text.strip())
    number, characters = repeated(paragraphs)
    drop = above("gopher_dup_para_frac", number / len(paragraphs), settings.max_dup_paragraphs) or above(
        "gopher_dup_para_char_frac", characters / total, settings.max_dup_paragraph_characters
    )
    if drop:
        return drop
    lines = _LINE.split(facts.text)
    number, characters = repeated(lines)
    return above("gopher_dup_line_frac", number / len(lines), settings.max_dup_lines) or above(
        "gopher_dup_line_char_frac", characters / total, settings.max_dup_line_characters
    )


def _top(settings: GopherRepetitionRules, facts: TextFacts) -> Drop | None:
    hashes = words = facts.word_hashes
    for n in range(2, max(settings.max_top_ngram, default=0) + 1):
        hashes = hashes[:-1] * _MIX + words[n - 1 :]
        if n in settings.max_top_ngram and len(hashes):
            threshold = settings.max_top_ngram[n]
            lengths = facts.word_starts[n:] - facts.word_starts[:-n] + (n - 1)
            top = top_characters(hashes, lengths, threshold * len(facts.text))
            drop = above(f"gopher_top_{n}_gram", top / len(facts.text), threshold)
            if drop:
                return drop
    return None


def top_characters(hashes: UInt64, lengths: Int64, limit: float) -> int:
    """Characters of all occurrences of the most frequent n-gram, of several the first; 0 if surely within `limit`."""
    least = max(1, int(limit / int(lengths.max())))
    if least > len(hashes):
        return 0
    ordered = np.sort(hashes)
    if not (ordered[least - 1 :] == ordered[: len(ordered) - least + 1]).any():
        return 0  # none comes often enough
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    counts = np.diff(begins, append=len(ordered))
    most = int(counts.max())
    first = int(np.isin(hashes, ordered[begins[counts == most]]).argmax())
    return most * int(lengths[first])


def _repeated_ngrams(settings: GopherRepetitionRules, facts: TextFacts) -> Drop | None:
    starts = facts.word_starts
    for n, threshold in sorted(settings.max_dup_ngram.items()):
        hashes = facts.ngram_hashes(n)
        if len(hashes):
            characters = repeated_characters(hashes, starts[n:] - starts[:-n], n, threshold * len(facts.text))
            drop = above(f"gopher_dup_{n}_gram", characters / len(facts.text), threshold)
            if drop:
                return drop
    return None


def repeated_characters(hashes: UInt64, lengths: Int64, n: int, limit: float) -> int:
    """Characters of n-grams that came before, going on behind each one found; 0 if surely within `limit`."""
    ordered = np.sort(hashes)
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(again) * int(lengths.max()) <= limit:
        return 0
    values = np.unique(again)
    nearest = values[np.minimum(np.searchsorted(values, hashes), len(values) - 1)]
    places = np.flatnonzero(nearest == hashes)
    seen: set[int] = set()
    characters = free = 0
    for place, value, length in zip(
        places.tolist(), hashes[places].tolist(), lengths[places].tolist(), strict=True
    ):  # n-grams that come once change nothing
        if place < free:
            continue
        if value in seen:
            characters += length
            free = place + n
        else:
            seen.add(value)
    return characters

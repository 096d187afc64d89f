"""Gopher's rules on repetition (arXiv:2112.11446, table A1).

Fractions are of the text's characters, blanks included; datatrove judges paragraphs before lines, and so does this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from configs.schema.quality_rules import GopherRepetitionRules, MassiveTextZhRules
from data_prep.quality.judgement import Drop, Judgement, above
from data_prep.quality.text_facts import TextFacts
from data_prep.quality.word_table import Int64, UInt64

_BUCKET_BITS = 14
_FEW = 200  # words; below, numpy's overhead is more than the work
_MIX = np.uint64(0xD6E8FEB86659FD93)


def gopher_repetition(settings: GopherRepetitionRules, facts: TextFacts) -> Judgement:
    """Repeated paragraphs and lines, the most frequent n-grams, repeated n-grams."""
    if not facts.text:
        return Drop("gopher_empty", "0 characters")
    drop = repeated_parts(settings, facts, "gopher")
    if drop:
        return drop
    if len(facts.word_ids) <= _FEW:
        return _among_few(settings, facts) or facts.text
    return _top(settings, facts) or _repeated_ngrams(settings, facts) or facts.text


def repeated(parts: Sequence[str]) -> tuple[int, int]:
    """Number and characters of the elements that came before."""
    distinct = set(parts)
    if len(distinct) == len(parts):
        return 0, 0
    return len(parts) - len(distinct), sum(map(len, parts)) - sum(map(len, distinct))


def repeated_parts(settings: GopherRepetitionRules | MassiveTextZhRules, facts: TextFacts, family: str) -> Drop | None:
    """The rules on paragraphs and lines."""
    total = len(facts.text)
    stripped = facts.text.strip().split("\n\n")
    paragraphs = [part for part in (part.lstrip("\n") for part in stripped) if part] or [""]
    number, characters = repeated(paragraphs)
    drop = above(f"{family}_dup_para_frac", number / len(paragraphs), settings.max_dup_paragraphs) or above(
        f"{family}_dup_para_char_frac", characters / total, settings.max_dup_paragraph_characters
    )
    if drop:
        return drop
    lines = [line for line in facts.lines if line]
    lines += [""] * (facts.text.startswith("\n") + facts.text.endswith("\n"))  # as datatrove counts them
    number, characters = repeated(lines)
    return above(f"{family}_dup_line_frac", number / len(lines), settings.max_dup_lines) or above(
        f"{family}_dup_line_char_frac", characters / total, settings.max_dup_line_characters
    )


def _among_few(settings: GopherRepetitionRules, facts: TextFacts) -> Drop | None:
    """The rules on n-grams as datatrove writes them, without numpy."""
    words, total = facts.words, len(facts.text)
    for n, threshold in settings.max_top_ngram.items():
        grams = list(zip(*(words[begin:] for begin in range(n)), strict=False))
        if grams:
            few = len(set(grams)) == len(grams)
            gram, count = (grams[0], 1) if few else Counter(grams).most_common(1)[0]
            drop = above(f"gopher_top_{n}_gram", count * len(" ".join(gram)) / total, threshold)
            if drop:
                return drop
    starts = facts.word_starts.tolist()
    joined = "".join(words)
    for n, threshold in settings.max_dup_ngram.items():
        strings = [joined[begin:end] for begin, end in zip(starts, starts[n:], strict=False)]
        if len(set(strings)) < len(strings):
            characters = _walk(range(len(strings)), strings, map(len, strings), n)
            drop = above(f"gopher_dup_{n}_gram", characters / total, threshold)
            if drop:
                return drop
    return None


def _walk(places: Iterable[int], grams: Iterable[Hashable], lengths: Iterable[int], n: int) -> int:
    """Characters of n-grams that came before; the search goes on behind each one found."""
    seen: set[Hashable] = set()
    characters = free = 0
    for place, gram, length in zip(places, grams, lengths, strict=True):
        if place < free:
            continue
        if gram in seen:
            characters += length
            free = place + n
        else:
            seen.add(gram)
    return characters


def _top(settings: GopherRepetitionRules, facts: TextFacts) -> Drop | None:
    hashes = words = facts.word_hashes
    most = len(words)
    for n in range(2, max(settings.max_top_ngram, default=0) + 1):
        hashes = hashes[:-1] * _MIX + words[n - 1 :]
        if n in settings.max_top_ngram and len(hashes):
            threshold = settings.max_top_ngram[n]
            lengths = facts.word_starts[n:] - facts.word_starts[:-n] + (n - 1)
            if most * int(lengths.max()) <= threshold * len(facts.text):
                continue
            most = most_in_bucket(hashes)  # no n-gram comes more often, nor does a longer one
            if most * int(lengths.max()) <= threshold * len(facts.text):
                continue
            top = top_characters(hashes, lengths)
            drop = above(f"gopher_top_{n}_gram", top / len(facts.text), threshold)
            if drop:
                return drop
    return None


def most_in_bucket(hashes: UInt64) -> int:
    """Most hashes with the same first bits."""
    return int(np.bincount((hashes >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64)).max())


def top_characters(hashes: UInt64, lengths: Int64) -> int:
    """Characters of all occurrences of the most frequent n-gram, of several the first."""
    values, counts = np.unique(hashes, return_counts=True)
    most = int(counts.max())
    first = int(np.isin(hashes, values[counts == most]).argmax())
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
    places = maybe_repeated(hashes)
    if len(places) * int(lengths.max()) <= limit:
        return 0
    _, numbers, counts = np.unique(hashes[places], return_inverse=True, return_counts=True)
    repeated = counts[numbers] > 1  # n-grams that come once change nothing
    places = places[repeated]
    return _walk(places.tolist(), numbers[repeated].tolist(), lengths[places].tolist(), n)


def maybe_repeated(hashes: UInt64) -> Int64:
    """Places, in order, that share some bits of their hash with another place: all true repetitions, few others."""
    bits = max(8, len(hashes).bit_length() + 3)
    buckets = (hashes >> np.uint64(64 - bits)).astype(np.int64)
    places = np.arange(len(hashes), dtype=np.int32)
    last = np.empty(1 << bits, dtype=np.int32)
    last[buckets] = places
    last = last[buckets]
    shared = last != places
    shared[last[shared]] = True
    return np.flatnonzero(shared)

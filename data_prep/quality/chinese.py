"""Gopher's rules for Chinese, which has no spaces between words: characters are counted.

The n-grams are those of the Chinese characters alone, everything between them left out: addresses, code and rules of
dashes would count as repetition otherwise.
"""

from __future__ import annotations

import re

import numpy as np

from configs.schema.quality_rules import MassiveTextZhRules
from data_prep.quality.judgement import Drop, Judgement, above, below
from data_prep.quality.punctuation import TERMINAL
from data_prep.quality.repetition import most_in_bucket, repeated_characters, repeated_parts, top_characters
from data_prep.quality.text_facts import TextFacts
from data_prep.quality.word_table import UInt64, powers, scattered

_HAN = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF), (0x3005, 0x3007))
_ELLIPSIS = re.compile(r"…+|\.{3,}|。{3,}")
_BULLETS = ("•", "-", "*", "·", "●", "■", "◆", "○")
_ENDS = TERMINAL | frozenset("…：；:;")
_CLOSING = "”’」』》）)】]\"'"


def massivetext_zh(settings: MassiveTextZhRules, facts: TextFacts) -> Judgement:
    """Length, script, symbols, lines, repetition."""
    joined = "".join(facts.chunks)
    if not joined:
        return Drop("zh_empty", "0 characters")
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    han = codes[np.any([(codes >= first) & (codes <= last) for first, last in _HAN], axis=0)]
    drop = (
        _on_characters(settings, facts, len(codes), len(han))
        or _on_lines(settings, facts)
        or repeated_parts(settings, facts, "zh")
        or _on_ngrams(settings, han.astype(np.uint64))
    )
    return drop or facts.text


def _on_characters(settings: MassiveTextZhRules, facts: TextFacts, total: int, han: int) -> Drop | None:
    lines = sum(1 for line in facts.lines if line and not line.isspace())
    ellipses = sum(1 for _ in _ELLIPSIS.finditer(facts.text))
    return (
        below("zh_too_few_characters", total, settings.min_characters)
        or above("zh_too_many_characters", total, settings.max_characters)
        or below("zh_short_lines", total / lines, settings.min_mean_line_characters)
        or below("zh_han_frac", han / total, settings.min_han)
        or above("zh_hashes", facts.text.count("#") / total, settings.max_symbols)
        or above("zh_ellipses", ellipses / total, settings.max_symbols)
    )


def _on_lines(settings: MassiveTextZhRules, facts: TextFacts) -> Drop | None:
    lines = [line for line in map(str.strip, facts.lines) if line]
    bullets = sum(line.startswith(_BULLETS) for line in lines) / len(lines)
    ellipses = sum(line.endswith(("…", "...", "。。。")) for line in lines) / len(lines)
    ended = sum(line.rstrip(_CLOSING)[-1:] in _ENDS for line in lines) / len(lines)
    return (
        above("zh_bullet_lines", bullets, settings.max_bullet_lines)
        or above("zh_ellipsis_lines", ellipses, settings.max_ellipsis_lines)
        or below("zh_line_punct_ratio", ended, settings.min_line_punct)
    )


def _on_ngrams(settings: MassiveTextZhRules, codes: UInt64) -> Drop | None:
    total = len(codes)
    places = np.arange(total)
    sums = np.zeros(total + 1, dtype=np.uint64)
    np.cumsum(scattered(codes) * powers("base", places), out=sums[1:])
    inverse = powers("inverse", places)

    def hashes(n: int) -> UInt64:
        result: UInt64 = (sums[n:] - sums[:-n]) * inverse[: total - n + 1]
        return result

    for n, threshold in settings.max_top_ngram.items():
        if n <= total and most_in_bucket(hashes(n)) * n > threshold * total:
            top = top_characters(hashes(n), np.full(total - n + 1, n))
            drop = above(f"zh_top_{n}_gram", top / total, threshold)
            if drop:
                return drop
    for n, threshold in settings.max_dup_ngram.items():
        if n <= total:
            characters = repeated_characters(hashes(n), np.full(total - n + 1, n), n, threshold * total)
            drop = above(f"zh_dup_{n}_gram", characters / total, threshold)
            if drop:
                return drop
    return None

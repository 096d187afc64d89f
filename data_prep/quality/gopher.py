"""Gopher's rules on words, symbols and lines (arXiv:2112.11446, appendix A.1.1)."""

from __future__ import annotations

from configs.schema.quality_rules import GopherQualityRules
from data_prep.quality.judgement import Drop, Judgement, above, below
from data_prep.quality.text_facts import TextFacts

_BULLETS = ("•", "-")


def gopher_quality(settings: GopherQualityRules, facts: TextFacts) -> Judgement:
    """In the published order. A word here is one that is not all punctuation; ratios are to all words."""
    return _on_words(settings, facts) or _on_lines(settings, facts) or _on_letters(settings, facts) or facts.text


def _on_words(settings: GopherQualityRules, facts: TextFacts) -> Drop | None:
    words = max(1, len(facts.word_ids))
    proper = len(facts.word_ids) - facts.count("symbol")
    mean = (int(facts.word_starts[-1]) - facts.symbol_characters) / max(1, proper)
    hashes = facts.text.count("#") / words
    ellipses = (facts.text.count("...") + facts.text.count("…")) / words
    return (
        below("gopher_too_few_words", proper, settings.min_words)
        or above("gopher_too_many_words", proper, settings.max_words)
        or below("gopher_short_mean_word", mean, settings.min_mean_word_characters)
        or above("gopher_long_mean_word", mean, settings.max_mean_word_characters)
        or above("gopher_hashes_per_word", hashes, settings.max_symbols_per_word)
        or above("gopher_ellipses_per_word", ellipses, settings.max_symbols_per_word)
    )


def _on_lines(settings: GopherQualityRules, facts: TextFacts) -> Drop | None:
    lines = facts.text.splitlines()
    total = max(1, len(lines))
    bullets = len([1 for line in map(str.lstrip, lines) if line.startswith(_BULLETS)]) / total
    ellipses = 0.0
    if "..." in facts.text or "…" in facts.text:
        ellipses = len([1 for line in map(str.rstrip, lines) if line.endswith(("...", "…"))]) / total
    return above("gopher_bullet_lines", bullets, settings.max_bullet_lines) or above(
        "gopher_ellipsis_lines", ellipses, settings.max_ellipsis_lines
    )


def _on_letters(settings: GopherQualityRules, facts: TextFacts) -> Drop | None:
    share = facts.count("alphabetic") / max(1, len(facts.word_ids))
    few = below("gopher_alphabetic_words", share, settings.min_alphabetic_words)
    if few is not None or settings.min_stop_words is None:
        return few
    found = 0
    for word in settings.stop_words:
        found += facts.has_word(word)
        if found >= settings.min_stop_words:
            return None
    return below("gopher_stop_words", found, settings.min_stop_words)

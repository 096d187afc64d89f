"""FineWeb's own rules (arXiv:2406.17557, section 3.4, and its code in datatrove)."""

from __future__ import annotations

from configs.schema.quality_rules import FineWebRules
from data_prep.quality.judgement import Drop, Judgement, above, below
from data_prep.quality.punctuation import TERMINAL
from data_prep.quality.repetition import repeated
from data_prep.quality.text_facts import TextFacts


def fineweb(settings: FineWebRules, facts: TextFacts) -> Judgement:
    """Lines that end without a full stop, short lines, repeated lines, lists."""
    lines = [line for line in facts.lines if line and not line.isspace()]
    if not lines:
        return Drop("fineweb_empty", "0 lines")
    ended = sum(line[-1] in TERMINAL for line in lines) / len(lines)
    short = sum(len(line) <= settings.short_line_characters for line in lines) / len(lines)
    return (
        below("fineweb_line_punct_ratio", ended, settings.min_line_punct)
        or above("fineweb_short_line_ratio", short, settings.max_short_lines)
        or _repeated_characters(settings, facts, lines)
        or _list(settings, facts)
        or facts.text
    )


def _repeated_characters(settings: FineWebRules, facts: TextFacts, lines: list[str]) -> Drop | None:
    characters = repeated(lines)[1]
    line_ends = len(facts.lines) - 1
    return above("fineweb_char_dup_ratio", characters / (len(facts.text) - line_ends), settings.max_char_dup)


def _list(settings: FineWebRules, facts: TextFacts) -> Drop | None:
    line_ends = len(facts.lines) - 1
    if settings.max_line_ends_per_word is None or line_ends <= settings.max_line_ends_per_word * len(facts.chunks):
        return None  # there are at least as many words as chunks
    return above("fineweb_list_ratio", line_ends / len(facts.word_ids), settings.max_line_ends_per_word)

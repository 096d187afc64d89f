"""C4's rules: takes out lines, then checks the rest (arXiv:1910.10683, section 2.2, and its code, c4_utils.py)."""

from __future__ import annotations

import re
from itertools import islice

from configs.schema.quality_rules import C4Rules
from data_prep.quality.judgement import Drop, Judgement
from data_prep.quality.text_facts import TextFacts, sentence_count

_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_ENDS = (".", "?", "!", '"', "'")
_POLICY = re.compile("terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies")


def c4(settings: C4Rules, facts: TextFacts) -> Judgement:
    """Drops, or the lines that are left, stripped.

    As in datatrove, a document is dropped for a phrase or bracket only in a line that the rules before it leave.
    """
    lowered = facts.text.lower()
    # Almost no document has any of these: then no line is searched for them.
    watch = "[" in facts.text or "{" in facts.text or "javascript" in lowered or "lorem ipsum" in lowered
    watch = watch or _POLICY.search(lowered) is not None
    kept = []
    for whole in facts.text.splitlines():
        line = whole.strip()
        if len(line) > settings.max_word_characters and _has_long_word(line, settings.max_word_characters):
            continue
        cleaned = _CITATION.sub("", line) if settings.citations and watch and "[" in line else line
        if settings.terminal_punctuation and (not cleaned.endswith(_ENDS) or cleaned.endswith("...")):
            continue
        if len(line.split(None, settings.min_line_words)) < settings.min_line_words:
            continue
        if watch:
            judged = _phrases(settings, cleaned)
            if isinstance(judged, Drop):
                return judged
            if not judged:
                continue
        kept.append(cleaned)
    return _enough(settings, kept)


def _has_long_word(line: str, limit: int) -> bool:
    return max(map(len, line.split()), default=0) > limit


def _phrases(settings: C4Rules, line: str) -> Drop | bool:
    """Tells whether the line stays, by what it says."""
    lowered = line.lower()
    if settings.lorem_ipsum and "lorem ipsum" in lowered:
        return Drop("c4_lorem_ipsum", line[:80])
    if settings.javascript and "javascript" in lowered:
        return False
    if settings.curly_bracket and "{" in line:
        return Drop("c4_curly_bracket", line[:80])
    return not (settings.policy and _POLICY.search(lowered))


def _enough(settings: C4Rules, lines: list[str]) -> Judgement:
    sentences = 0
    wanted = settings.min_sentences
    for line in islice(lines, wanted):  # each has at least one
        sentences += sentence_count(line, wanted - sentences)
        if sentences >= wanted:
            break
    if sentences < wanted:
        return Drop("c4_too_few_sentences", f"{sentences} < {wanted}")
    left = "\n".join(lines).strip()
    return left if left else Drop("c4_no_line_left", "0 lines")

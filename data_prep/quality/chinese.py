"""Gopher's rules carried over to Chinese, which has no words between blanks: counted in characters."""

from __future__ import annotations

from configs.quality_rules import MassiveTextZhRules
from data_prep.quality.facts import TextFacts
from data_prep.quality.judgement import Judgement, above, below


def massivetext_zh(settings: MassiveTextZhRules, facts: TextFacts) -> Judgement:
    """See `configs.quality_rules.MassiveTextZhRules`."""
    characters = len("".join(facts.chunks))
    return (
        below("zh_too_few_characters", characters, settings.min_characters)
        or above("zh_too_many_characters", characters, settings.max_characters)
        or facts.text
    )

"""From the recipe's `quality.rules` to functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from configs.quality_rules import Rule as Settings
from data_prep.quality.c4 import c4
from data_prep.quality.chinese import massivetext_zh
from data_prep.quality.facts import TextFacts
from data_prep.quality.fineweb import fineweb
from data_prep.quality.gopher import gopher_quality
from data_prep.quality.judgement import Drop, Judgement, Rule
from data_prep.quality.repetition import gopher_repetition

_RULES: dict[str, Callable[[Any, TextFacts], Judgement]] = {
    "c4": c4,
    "gopher_quality": gopher_quality,
    "gopher_repetition": gopher_repetition,
    "fineweb": fineweb,
    "massivetext_zh": massivetext_zh,
}


def build_rules(settings: Sequence[Settings]) -> list[Rule]:
    """One function per rule set: from a text's facts to a `Drop`, or to the text that is left."""
    return [partial(_RULES[setting.rule], setting) for setting in settings]


def judge(rules: Sequence[Rule], text: str) -> Judgement:
    """The first drop, or the text that all rules leave."""
    facts = TextFacts(text)
    for rule in rules:
        result = rule(facts)
        if isinstance(result, Drop):
            return result
        if result is not facts.text and result != facts.text:
            facts = TextFacts(result)
    return facts.text

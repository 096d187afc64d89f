"""Builds functions from the recipe's `quality.rules`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from configs.safety.user_code import UserCode
from configs.schema.quality_rules import CustomRules
from configs.schema.quality_rules import Rule as Settings
from data_prep.quality.c4 import c4
from data_prep.quality.chinese import massivetext_zh
from data_prep.quality.fineweb import fineweb
from data_prep.quality.gopher import gopher_quality
from data_prep.quality.judgement import Drop, Judgement, Rule
from data_prep.quality.repetition import gopher_repetition
from data_prep.quality.text_facts import TextFacts

_RULES: dict[str, Callable[[Any, TextFacts], Judgement]] = {
    "c4": c4,
    "gopher_quality": gopher_quality,
    "gopher_repetition": gopher_repetition,
    "fineweb": fineweb,
    "massivetext_zh": massivetext_zh,
}


def build_rules(settings: Sequence[Settings], code: Mapping[int, UserCode] | None = None) -> list[Rule]:
    """One function per rule set: from a text's facts to a `Drop`, or to the text that is left.

    Args:
        settings: of the recipe, in their order.
        code: of the custom rules by their place, as `custom_rules` gives it; None: read now.

    Raises:
        ValueError: for code that may not run, cannot be run, or is not called like this.
    """
    code = custom_rules(settings) if code is None else code
    return [
        _custom(code[number]) if isinstance(setting, CustomRules) else partial(_RULES[setting.rule], setting)
        for number, setting in enumerate(settings)
    ]


def custom_rules(settings: Sequence[Settings]) -> dict[int, UserCode]:
    """The code of the user's own rules by their place, read and allowed to run: what workers are given.

    Raises:
        ValueError: as `build_rules`.
    """
    found = {}
    for number, setting in enumerate(settings):
        if isinstance(setting, CustomRules):
            found[number] = UserCode.read(setting.code, setting.options).allowed(f"data.quality.rules.{number}")
            found[number].check_call("facts")
    return found


def _custom(code: UserCode) -> Rule:
    function = code.load()

    def rule(facts: TextFacts) -> Judgement:
        result = function(facts, **code.options)
        if not isinstance(result, (Drop, str)):
            raise TypeError(f"{code.name} gave a {type(result).__name__}; a rule gives a Drop or the text that is left")
        return result

    return rule


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

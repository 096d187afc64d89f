"""Drops documents by rule sets with their published thresholds, applied in the order given."""

from __future__ import annotations

from data_prep.quality.judgement import Drop, Judgement, Rule
from data_prep.quality.not_text import reason_to_drop, unprintable
from data_prep.quality.rules import build_rules, judge
from data_prep.quality.text_facts import TextFacts

__all__ = ["Drop", "Judgement", "Rule", "TextFacts", "build_rules", "judge", "reason_to_drop", "unprintable"]

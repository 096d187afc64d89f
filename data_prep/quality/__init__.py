"""Which documents stay: rule sets with their published thresholds, applied in the order given."""

from __future__ import annotations

from data_prep.quality.basics import reason_to_drop, unprintable
from data_prep.quality.facts import TextFacts
from data_prep.quality.judgement import Drop, Judgement, Rule
from data_prep.quality.rules import build_rules, judge

__all__ = ["Drop", "Judgement", "Rule", "TextFacts", "build_rules", "judge", "reason_to_drop", "unprintable"]

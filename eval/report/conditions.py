"""Reads gates: conditions on scores, as recipes write them.

- `METRIC op VALUE`: a score beside a number or another score, with one of < <= > >= ==;
- `METRIC op VALUE (whole interval)`: both ends of the score's 95% interval meet the condition;
- `METRIC better than baseline`: a paired test finds the score better than the baseline's;
- `METRIC not worse than baseline`: no paired test finds it worse.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Collection
from dataclasses import dataclass

from configs.schema.stage_recipe import BASE

OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}
_VALUE = re.compile(r"^\s*(\S+?)\s*(<=|>=|==|<|>)\s*(\S+?)\s*(\(\s*whole\s+interval\s*\))?\s*$")
_BASELINE = re.compile(r"^\s*(\S+)\s+(better|not\s+worse)\s+than\s+baseline\s*$")


@dataclass(frozen=True)
class Condition:
    """A gate, taken apart.

    Attributes:
        text: as the recipe has it.
        left: name of the score.
        sign: an operator, or `better` or `not worse` (than the baseline).
        right: a number or the name of another score; empty for the baseline.
        whole: the whole interval must meet the condition.
    """

    text: str
    left: str
    sign: str
    right: str = ""
    whole: bool = False

    @property
    def on_baseline(self) -> bool:
        """Whether the gate compares with the baseline."""
        return self.sign not in OPERATORS

    @property
    def number(self) -> float | None:
        """The number that the score is compared with; None for another score."""
        try:
            return float(self.right)
        except ValueError:
            return None

    @property
    def names(self) -> list[str]:
        """The names of its scores."""
        return [self.left] if self.on_baseline or self.number is not None else [self.left, self.right]


def read_condition(text: str) -> Condition:
    """Takes a gate apart.

    Raises:
        ValueError: when it is no condition.
    """
    if match := _BASELINE.match(text):
        return Condition(text, match[1], " ".join(match[2].split()))
    match = _VALUE.match(text)
    if match is None:
        raise ValueError(
            f"gate `{text}`: write it as `metric op value`, with one of {' '.join(OPERATORS)}, or as "
            "`metric not worse than baseline` or `metric better than baseline`"
        )
    if match[4] and match[2] == "==":
        raise ValueError(f"gate `{text}`: a whole interval equals no value; use one of < <= > >=")
    return Condition(text, match[1], match[2], match[3], bool(match[4]))


def split_stage(name: str, stages: Collection[str]) -> tuple[str, str]:
    """Splits `STAGE:metric` at a known stage; a metric alone is the run's own."""
    stage, colon, rest = name.partition(":")
    return (stage, rest) if colon and stage in stages else (BASE, name)

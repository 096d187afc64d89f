"""Gates: conditions on scores, `metric op value`, that a run must meet; and comparison with an earlier run."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.recipe import load_run
from eval.results import Result, Results, load_results

_OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}
_PATTERN = re.compile(r"^\s*(\S+?)\s*(<=|>=|==|<|>)\s*(\S+)\s*$")


@dataclass(frozen=True)
class Gate:
    """A gate and how it came out; `left` and `right` are the values compared."""

    text: str
    passed: bool
    left: float
    right: float


def check_gates(run: Path) -> list[Gate]:
    """Evaluates the gates of a run's recipe on its results.

    Raises:
        ValueError: a gate that cannot be read, or names an unknown metric.
    """
    return evaluate_gates(load_run(run).report.gates, load_results(run))


def evaluate_gates(gates: Sequence[str], results: Results) -> list[Gate]:
    """Evaluates `metric op value` strings; the value is a number or another metric's name."""
    values = {name: result.value for name, result in results.by_name().items()}
    return [_evaluate(text, values) for text in gates]


def _evaluate(text: str, values: dict[str, float]) -> Gate:
    match = _PATTERN.match(text)
    if match is None:
        raise ValueError(f"gate `{text}`: write it as `metric op value`, with one of {' '.join(_OPERATORS)}")
    left_name, sign, right_name = match.groups()
    left = _value(left_name, text, values)
    try:
        right = float(right_name)
    except ValueError:
        right = _value(right_name, text, values)
    return Gate(text, bool(_OPERATORS[sign](left, right)), left, right)


def _value(name: str, gate: str, values: dict[str, float]) -> float:
    if name in values:
        return values[name]
    near = difflib.get_close_matches(name, values, n=3, cutoff=0.4) or sorted(values)[:10]
    raise ValueError(f"gate `{gate}`: there is no metric `{name}`; near: {', '.join(near) or 'the run has no scores'}")


@dataclass(frozen=True)
class Delta:
    """A score beside the baseline's.

    `verdict` is better, worse, same (the intervals overlap) or incomparable (other items, task version or signature).
    """

    result: Result
    before: Result
    change: float
    verdict: str


def compare(results: Results, baseline: Results) -> list[Delta]:
    """Scores that both runs have. A difference counts when the two 95% intervals do not overlap.

    Raises:
        ValueError: the two runs share no score.
    """
    earlier = baseline.by_name()
    deltas = [_delta(result, earlier[result.name]) for result in results.results if result.name in earlier]
    if not deltas:
        raise ValueError("the run and its baseline share no score: they were evaluated on other sets and tasks")
    return deltas


def _delta(result: Result, before: Result) -> Delta:
    change = result.value - before.value
    if (result.n, result.task_version, result.signature) != (before.n, before.task_version, before.signature):
        return Delta(result, before, change, "incomparable")
    bounds = (result.low, result.high, before.low, before.high)
    low, high, low_before, high_before = (bound if bound is not None else float("nan") for bound in bounds)
    apart = low > high_before or high < low_before  # False where an interval is missing: nothing can be claimed
    verdict = "same" if not apart else ("better" if (change > 0) == result.higher_is_better else "worse")
    return Delta(result, before, change, verdict)

"""Compares how two scores were made, and tells why they cannot be compared."""

from __future__ import annotations

from eval.results import Result

# Keys of sacrebleu's signature that affect the interval, not the score.
_OF_THE_INTERVAL = {"bs", "seed"}
# Settings that results of earlier versions do not name, with the value that they had.
_UNNAMED = {"precision": "fp32"}


def difference(one: Result, other: Result) -> str | None:
    """Tells why the same score of two runs cannot be compared; None if it can.

    The set's content, the evaluation's settings and the versions of scoring code must be equal, and for scores per
    token also the tokenizer.
    """
    return "; ".join([*_units(one, other), *_sets(one, other), *_making(one, other)]) or None


def other_rules(one: Result, other: Result) -> str | None:
    """Tells why two scores cannot be compared even on the items that both have; None if they can."""
    return "; ".join([*_units(one, other), *_making(one, other)]) or None


def other_set(one: Result, other: Result) -> str | None:
    """Tells that two scores are of other items; None if they are of the same set."""
    return "; ".join(_sets(one, other)) or None


def difference_within(one: Result, other: Result) -> str | None:
    """Tells why two scores of one run, such as a model's and a compressor's, cannot be compared; None if they can."""
    reasons = [*_units(one, other), *_sets(one, other)]
    for key in sorted(one.settings.keys() & other.settings.keys()):
        reasons += _unequal(key, one.settings[key], other.settings[key])
    return "; ".join(reasons) or None


def hidden_by_bounds(low: Result, high: Result) -> str | None:
    """Tells why upper bounds cannot show that the first score is the lower one; None where they can.

    What a bound stands for may be lower: a bound below an exact score shows it, one above shows nothing. Two bounds are
    compared as the numbers that they are.
    """
    if low.is_made_of_bounds != high.is_made_of_bounds:
        made = low if low.is_made_of_bounds else high
        return f"{made.name} is made of upper bounds, the other score is not"
    if high.is_bound and not low.is_bound:
        return f"{high.name} is an upper bound; what it bounds may be below {low.name}"
    return None


def _making(one: Result, other: Result) -> list[str]:
    """Names what made the scores another way: version of the task, settings, scorer."""
    reasons = []
    if one.task_version != other.task_version:
        reasons.append(f"task version {one.task_version} against {other.task_version}")
    for key in sorted(one.settings.keys() | other.settings.keys()):
        reasons += _unequal(key, *(result.settings.get(key, _UNNAMED.get(key)) for result in (one, other)))
    ours, theirs = _signature(one), _signature(other)
    for key in sorted(ours.keys() | theirs.keys()):
        reasons += _unequal(key, ours.get(key), theirs.get(key))
    return reasons


def _units(one: Result, other: Result) -> list[str]:
    reasons = []
    if one.unit != other.unit or one.higher_is_better != other.higher_is_better:
        reasons.append(f"unit `{one.unit}` against `{other.unit}`")
    if one.tokenizer != other.tokenizer:
        reasons.append("another tokenizer, and the unit is per token")
    return reasons


def _sets(one: Result, other: Result) -> list[str]:
    if one.n != other.n:
        return [f"another set: {one.n:,} against {other.n:,} units"]
    return ["another set: as many units, other content"] if one.set != other.set else []


def _unequal(name: str, ours: object, theirs: object) -> list[str]:
    return [] if ours == theirs else [f"{name} {_shown(ours)} against {_shown(theirs)}"]


def _shown(value: object) -> object:
    return "unknown" if value is None else value


def _signature(result: Result) -> dict[str, str]:
    """Splits sacrebleu's `key:value|key:value`; any other text is one value."""
    parts = [part.partition(":") for part in (result.signature or "").split("|") if part]
    if not all(separator for _, separator, _ in parts):
        return {"signature": result.signature or ""}
    return {key: value for key, _, value in parts if key not in _OF_THE_INTERVAL}

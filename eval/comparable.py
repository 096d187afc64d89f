"""Whether two scores can be compared, and why not."""

from __future__ import annotations

from eval.results import Result

# Parts of sacrebleu's signature that say how the interval was drawn, not how the score was made.
_OF_THE_INTERVAL = {"bs", "seed"}


def difference(one: Result, other: Result) -> str | None:
    """Why the same score of two runs cannot be compared; None where it can.

    The set's content, the evaluation's settings, the versions of what scored and, where the unit is per token, the
    tokenizer must be equal.
    """
    found = _rules(one, other)
    if one.task_version != other.task_version:
        found.append(f"task version {one.task_version} against {other.task_version}")
    for key in sorted(one.settings.keys() | other.settings.keys()):
        found += _unequal(key, one.settings.get(key), other.settings.get(key))
    ours, theirs = _signature(one), _signature(other)
    for key in sorted(ours.keys() | theirs.keys()):
        found += _unequal(key, ours.get(key), theirs.get(key))
    return "; ".join(found) or None


def difference_within(one: Result, other: Result) -> str | None:
    """Why two scores of one run cannot be compared, such as a model's and a compressor's; None where they can."""
    found = _rules(one, other)
    for key in sorted(one.settings.keys() & other.settings.keys()):
        found += _unequal(key, one.settings[key], other.settings[key])
    return "; ".join(found) or None


def _rules(one: Result, other: Result) -> list[str]:
    found = []
    if one.unit != other.unit or one.higher_is_better != other.higher_is_better:
        found.append(f"unit `{one.unit}` against `{other.unit}`")
    if one.tokenizer != other.tokenizer:
        found.append("another tokenizer, and the unit is per token")
    if one.n != other.n:
        found.append(f"another set: {one.n:,} against {other.n:,} units")
    elif one.set != other.set:
        found.append("another set: as many units, other content")
    return found


def _unequal(name: str, ours: object, theirs: object) -> list[str]:
    return [] if ours == theirs else [f"{name} {_shown(ours)} against {_shown(theirs)}"]


def _shown(value: object) -> object:
    return "unknown" if value is None else value


def _signature(result: Result) -> dict[str, str]:
    """sacrebleu's `key:value|key:value`, or any other text as a whole."""
    parts = [part.partition(":") for part in (result.signature or "").split("|") if part]
    if not all(separator for _, separator, _ in parts):
        return {"signature": result.signature or ""}
    return {key: value for key, _, value in parts if key not in _OF_THE_INTERVAL}

"""Scores groups of lm-eval: takes lm-eval's value, and computes interval, chance and n by lm-eval's weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from data_prep.decontamination.evaluation_sets import set_key
from eval.results import MEMBERS, Result, made_alike


def metric_name(metric: str, filter_name: str) -> str:
    """Returns the metric, with the filter appended if it is not lm-eval's default."""
    return metric if filter_name == "none" else f"{metric}/{filter_name}"


def score_name(task: str, metric: str, filter_name: str) -> str:
    """Returns `benchmark/task/metric`, with the filter appended if it is not lm-eval's default."""
    return f"benchmark/{task}/{metric_name(metric, filter_name)}"


def is_score(key: str, value: Any) -> bool:
    """Tells whether an entry of lm-eval's results is a score (`metric,filter`), not a standard error or a remark."""
    metric, _, filter_name = key.partition(",")
    return bool(filter_name) and not metric.endswith("_stderr") and isinstance(value, Real)


def group_results(group: Any, raw: dict[str, Any], results: Sequence[Result]) -> list[Result]:
    """Returns one result for each metric and filter of a group.

    Args:
        group: lm-eval's `Group`.
        raw: the return value of lm-eval's `evaluate`.
        results: results of the member tasks.
    """
    by_name = {result.name: result for result in results}
    out = []
    for key, value in raw["results"].get(group.name, {}).items():
        if not is_score(key, value):
            continue
        metric, _, filter_name = key.partition(",")
        weights = _weights(group, key, raw["results"])
        named = {task: by_name.get(score_name(task, metric, filter_name)) for task in weights}
        members = [(weights[task], member) for task, member in named.items() if member is not None]
        if len(members) == len(named) > 0:
            out.append(_combined(score_name(group.name, metric, filter_name), float(value), members, raw, group.name))
    return out


def _weights(group: Any, key: str, scores: dict[str, Any]) -> dict[str, float]:
    """Maps each task to its weight in the group's value, by lm-eval's `Group.aggregate`. The weights add up to 1.

    A task that belongs to the group several times (directly, and through a subgroup) is counted several times.
    """
    metric, _, filter_name = key.partition(",")
    by_size = True
    for rule in group.aggregate_metric_list or []:  # if several rules match, lm-eval uses the last
        if rule.metric == metric and (rule.filter_list is None or filter_name in rule.filter_list):
            by_size = rule.weight_by_size
    parts: dict[str, float] = {}
    for task in group.get_all_tasks():
        name = task.task_name
        if key in scores.get(name, {}):
            parts[name] = parts.get(name, 0) + (scores[name].get("sample_len", 0) if by_size else 1)
    total = sum(parts.values())
    return {name: part / total for name, part in parts.items()} if total else {}


def _combined(
    name: str, value: float, members: Sequence[tuple[float, Result]], raw: dict[str, Any], group: str
) -> Result:
    """Combines scores with independent errors into a weighted mean.

    The interval is Zou and Donner's MOVER (Statistics in Medicine 27, 2008). It treats both sides of the members'
    intervals separately, because intervals of proportions near 0 or 1 are asymmetric.
    """
    first = members[0][1]
    below = above = 0.0
    known = True
    for weight, member in members:
        if member.low is None or member.high is None:
            known = False
            continue
        below = math.hypot(below, weight * (member.value - member.low))
        above = math.hypot(above, weight * (member.high - member.value))
    chances = [weight * member.chance for weight, member in members if member.chance is not None]
    return Result(
        name=name,
        value=value,
        low=value - below if known else None,
        high=value + above if known else None,
        n=sum(member.n for _, member in members),
        unit=first.unit,
        higher_is_better=first.higher_is_better,
        interval=f"combined from {len(members)} tasks by their weights" if known else "none: a member has none",
        chance=sum(chances) if len(chances) == len(members) else None,
        task_version=str(raw["versions"].get(group)),
        signature=first.signature,
        set=set_key([member.name, member.set] for _, member in members),
        settings={
            **made_alike([member for _, member in members]),
            MEMBERS: {member.name: float(f"{weight:.12g}") for weight, member in members},
        },
    )

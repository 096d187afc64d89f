"""Averages the centred accuracies of a fixed list of tasks into one score, as CORE of DCLM does (arXiv:2406.11794).

Centred accuracy = (accuracy - chance) / (1 - chance): 0 for guessing, 1 for a model that is always right, negative for
one that is worse than guessing. So tasks with two choices and with four have one scale, and their mean moves early in
training, where each single task is noise. The list is the recipe's, and part of the score's settings: only runs with
the same list can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from configs.schema.evaluation import Core
from data_prep.decontamination.evaluation_sets import set_key
from eval.parts import Outcome
from eval.results import CENTRED, CHANCE_OF, Failure, Result, ScoreName, made_alike

CORE = "aggregate/core"
# Which accuracy of a task counts where the recipe names none.
_ACCURACIES = ("acc", "exact_match")


def core_tasks(section: Core) -> list[str]:
    """Returns the names of the tasks, without the metrics."""
    return [entry.partition("/")[0] for entry in section.tasks]


def core_results(section: Core, results: Sequence[Result]) -> tuple[list[Result], list[Failure]]:
    """Computes the aggregate of scores; returns none, and why, where a task of the list has no score or no chance."""
    if not section.tasks:
        return [], []
    members, problems = [], []
    for entry in section.tasks:
        try:
            member = _member(section, entry, results)
            if member in members:
                raise ValueError(f"`{entry}` is on the list twice, as {member[0].name}; remove one")
            members.append(member)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        return [], [Failure(CORE, "; ".join(problems))]
    return [_combined(members)], []


def add_core(section: Core, outcome: Outcome) -> None:
    """Adds the aggregate, or why there is none, to what an evaluation has come to."""
    results, failures = core_results(section, outcome.results)
    outcome.results += results
    outcome.failures += failures


def _member(section: Core, entry: str, results: Sequence[Result]) -> tuple[Result, float]:
    """The score of a task, and the accuracy of guessing."""
    task, _, metric = entry.partition("/")
    for name in [metric] if metric else _ACCURACIES:
        for result in results:
            kind, subject, rest, variant = ScoreName.parse(result.name)
            if (kind, subject) != ("benchmark", task) or "/".join(filter(None, (rest, variant))) != name:
                continue
            chance = section.chance.get(task, result.chance)
            if chance is None:
                raise ValueError(
                    f"chance of `{task}` is not known; set evaluation.core.chance.{task}, 0 for a task without choices"
                )
            if chance >= 1:
                raise ValueError(f"guessing is always right at `{task}`, so it tells nothing; take it off the list")
            return result, chance
    raise ValueError(f"`{entry}` has no score")


def _combined(members: Sequence[tuple[Result, float]]) -> Result:
    """The mean; its interval combines those of the tasks by MOVER, see `eval.harness.benchmark_groups`."""
    value = below = above = 0.0
    known = True
    for result, chance in members:
        scale = 1 / (1 - chance) / len(members)
        value += (result.value - chance) * scale
        if result.low is None or result.high is None:
            known = False
            continue
        below = math.hypot(below, scale * (result.value - result.low))
        above = math.hypot(above, scale * (result.high - result.value))
    return Result(
        name=CENTRED,
        value=value,
        low=value - below if known else None,
        high=value + above if known else None,
        n=sum(result.n for result, _ in members),
        unit="centred accuracy",
        higher_is_better=True,
        interval=f"combined from {len(members)} tasks" if known else "none: a task has none",
        chance=0.0,
        note=", ".join(f"{result.named.subject} {(result.value - c) / (1 - c):.3g}" for result, c in members),
        set=set_key(sorted([result.name, result.set] for result, _ in members)),
        settings={
            **{f"{CHANCE_OF}{result.name.partition('/')[2]}": chance for result, chance in members},
            **made_alike([result for result, _ in members]),
        },
    )

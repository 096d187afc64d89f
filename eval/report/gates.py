"""Evaluates gates (conditions `metric op value` on scores), and compares scores with an earlier run.

In the recipe of a chain, `STAGE:metric` is the score of a stage, as `RUN:STAGE` names its run; a metric alone is the
run's own.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.common.layout import RESULTS, STAGES
from configs.schema.recipe import Recipe, load_run
from configs.schema.stage_recipe import BASE, parent_name
from eval.aggregate import CENTRED
from eval.comparison.comparable import difference, difference_within
from eval.results import Failure, Result, Results, ScoreName, load_results
from eval.stage_facts import Role, applicable, asks_base, kind_of, role_of
from eval.statistics import pass_ks

_OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}
# The last part of a score's name, by kind; tests compare them with what is scored.
PERPLEXITY = ("bits_per_byte", "perplexity", "nats_per_token")
WORDS = ("word_perplexity", "byte_perplexity")  # where a set counts words
OF_GROUPS = ("bits_per_byte", "perplexity", "word_perplexity")  # of each value of a field
COMPRESSORS = ("gzip", "xz", "zstd")
TRANSLATION = ("bleu", "chrf", "copy_bleu")
CHAT = ("accuracy", "format", "stop_rate", "length")
PREFERENCE = ("accuracy", "longer", "less_repeated")
_PATTERN = re.compile(r"^\s*(\S+?)\s*(<=|>=|==|<|>)\s*(\S+)\s*$")


@dataclass(frozen=True)
class Gate:
    """A gate and its outcome.

    `left` and `right` are the compared values. A gate fails if its score failed, or if its two scores cannot be
    compared; `reason` explains it.
    """

    text: str
    passed: bool
    left: float | None
    right: float | None
    reason: str | None = None

    def __str__(self) -> str:
        if self.reason is not None:
            return f"{self.text}   ({self.reason})"
        return f"{self.text}   ({self.left:.4g} against {self.right:.4g})"


def check_gates(run: Path) -> list[Gate]:
    """Evaluates the gates of a run's recipe on its results.

    Raises:
        ValueError: for a gate with a syntax error or an unknown metric.
    """
    recipe = load_run(run)
    return evaluate_gates(recipe.report.gates, load_results(run), results_of_stages(recipe))


def results_of_stages(recipe: Recipe) -> dict[str, Results | None]:
    """Reads the results of each stage of a recipe; None for one that has none yet."""
    runs = {name: recipe.run_directory / STAGES / name for name in recipe.stage_names}
    return {name: load_results(run) if (run / RESULTS).is_file() else None for name, run in runs.items()}


def evaluate_gates(
    gates: Sequence[str], results: Results, stages: Mapping[str, Results | None] | None = None
) -> list[Gate]:
    """Evaluates strings `metric op value`. The value is a number or the name of another metric.

    Args:
        gates: the conditions.
        results: scores of the run itself.
        stages: scores of its stages by name; None for a stage without.
    """
    known = {BASE: results, **(stages or {})}
    return [_evaluate(text, known) for text in gates]


def gate_problems(recipe: Recipe) -> list[str]:
    """Finds the problems of a recipe's gates that are known before scoring.

    Metrics of lm-eval's tasks are not checked: only the task's own file tells its metrics, and whether it is a group.
    """
    known = sorted(_metrics(recipe))
    problems = []
    for text in recipe.report.gates:
        try:
            left, _, right = _read(text)
            for name in [left, right] if _number(right) is None else [left]:
                own = _split(name, {BASE, *recipe.stage_names})[1]
                opaque = bool(recipe.evaluation.benchmarks.tasks) and own.startswith("benchmark/")
                if name not in known and not opaque and not _is_group(name, recipe, known):
                    raise _unknown(name, text, known)
        except ValueError as error:
            problems.append(f"report.gates: {error}")
    return problems


def _is_group(name: str, recipe: Recipe, known: Collection[str]) -> bool:
    """Tells whether a name is a score of one value of a set's field `by`, which only the set's files know."""
    whole, _, group = name.rpartition("/")
    fields = {item.name: item.by for item in recipe.evaluation.perplexity}
    score = ScoreName.parse(_split(name, {BASE, *recipe.stage_names})[1])
    field, given = fields.get(score.subject), score.kind == "compression" or score.metric in OF_GROUPS
    return field is not None and given and whole in known and group.startswith(f"{field}=")


def gates_on_other_tasks(recipe: Recipe) -> list[str]:
    """Finds gates on a benchmark that the recipe does not list. They fail unless a listed group contains it."""
    listed = [entry.shown for entry in recipe.evaluation.benchmarks.entries]
    warnings = []
    for text in recipe.report.gates:
        match = _PATTERN.match(text)
        stages = {BASE, *recipe.stage_names}
        sides = [_split(side, stages)[1] for side in (match[1], match[3])] if match and listed else []
        named = [ScoreName.parse(side) for side in sides]
        tasks = [name.subject for name in named if name.kind == "benchmark" and name.metric]
        if others := [task for task in tasks if task not in listed]:
            warnings.append(
                f"gate `{text}`: evaluation.benchmarks.tasks lists no `{others[0]}`; the gate fails unless a group "
                f"among {', '.join(listed)} has it"
            )
    return warnings


def _metrics(recipe: Recipe) -> Iterator[str]:
    """Yields the names of all scores of the evaluation section, except those of benchmarks."""
    role = role_of(recipe.train.objective)
    names = list(_scores(recipe, role, asks_base(recipe)))
    yield from names
    if recipe.stages:
        yield from (f"{BASE}:{name}" for name in names)
    for number, stage in enumerate(recipe.stages):
        yield from (f"{stage.name}:{name}" for name in _scores(recipe, role_of(stage.objective), of_stage=number))


def _scores(recipe: Recipe, role: Role, asked: bool = False, of_stage: int | None = None) -> Iterator[str]:
    """Yields what the recipe's own run is scored on, or one of its stages."""
    section, parts = applicable(recipe.evaluation, role, asked), _parts(recipe)
    for item in section.perplexity:
        metrics = PERPLEXITY if item.words == "none" else (*PERPLEXITY, *WORDS)
        apart = parts if item.stream == "documents" else ("",)
        yield from (f"perplexity/{item.name}/{metric}{part}" for metric in metrics for part in apart)
        if of_stage is None:  # the same for each stage
            yield from (f"compression/{item.name}/{program}_bits_per_byte" for program in COMPRESSORS)
    if section.core.tasks:
        yield CENTRED
    for pairs in section.translation:
        yield from (f"translation/{pairs.name}/{metric}{part}" for metric in TRANSLATION for part in parts)
    for chat in section.chat:
        asked_for = [*CHAT, *(f"pass@{k}" for k in pass_ks(chat.samples))]
        yield from (f"chat/{chat.name}/{metric}{part}" for metric in asked_for for part in parts)
    if role == "assistant" and (tuned := _tuned(recipe, of_stage)) is not None:
        yield f"conversations/{tuned}/nats_per_token"
    for preference in section.preference:
        yield from (f"preference/{preference.name}/{metric}{part}" for metric in PREFERENCE for part in parts)


def _tuned(recipe: Recipe, stage: int | None) -> str | None:
    """Names the stage whose held-out conversations are scored, as `eval.stage_facts.tuned_of` finds it."""
    if stage is None:
        return recipe.name.rpartition(".")[2] if kind_of(recipe.train.objective) == "sft" else None
    names = list(recipe.stage_names)
    while kind_of(recipe.stages[stage].objective) != "sft":
        parent = parent_name(recipe.stages, stage)
        if parent == BASE:
            return None
        stage = names.index(parent)
    return names[stage]


def _parts(recipe: Recipe) -> tuple[str, ...]:
    """Returns the suffixes of scores: also clean and touched if the recipe decontaminates."""
    return ("", "/clean", "/touched") if recipe.data.decontaminate else ("",)


def _read(text: str) -> tuple[str, str, str]:
    match = _PATTERN.match(text)
    if match is None:
        raise ValueError(f"gate `{text}`: write it as `metric op value`, with one of {' '.join(_OPERATORS)}")
    left, sign, right = match.groups()
    return left, sign, right


def _split(name: str, stages: Collection[str]) -> tuple[str, str]:
    """Splits `STAGE:metric` at a known stage; a metric alone is the run's own."""
    stage, colon, rest = name.partition(":")
    return (stage, rest) if colon and stage in stages else (BASE, name)


def _evaluate(text: str, known: Mapping[str, Results | None]) -> Gate:
    left_name, sign, right_name = _read(text)
    left, right = _score(left_name, text, known), _number(right_name)
    other = _score(right_name, text, known) if right is None else None
    failed = [side.reason for side in (left, other) if isinstance(side, Failure)]
    if failed:
        return Gate(text, False, None, None, f"no score: {failed[0]}")
    assert isinstance(left, Result)
    reason = None
    if isinstance(other, Result):
        right, why = other.value, difference_within(left, other)
        reason = f"incomparable: {why}" if why else None
    assert right is not None
    return Gate(text, reason is None and bool(_OPERATORS[sign](left.value, right)), left.value, right, reason)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _score(name: str, gate: str, known: Mapping[str, Results | None]) -> Result | Failure:
    """Returns the score of this name, or its failure."""
    stage, metric = _split(name, known)
    results = known[stage]
    if results is None:
        return Failure(metric, f"stage `{stage}` has no results yet")
    scores = results.by_name()
    if metric in scores:
        return scores[metric]
    for failure in results.failures:
        if metric.startswith(f"{failure.name}/"):
            return failure
    raise _unknown(name, gate, sorted(_prefixed(known)))


def _prefixed(known: Mapping[str, Results | None]) -> Iterator[str]:
    for stage, results in known.items():
        yield from (name if stage == BASE else f"{stage}:{name}" for name in (results.by_name() if results else ()))


def _unknown(name: str, gate: str, known: Sequence[str]) -> ValueError:
    near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:10])
    return ValueError(f"gate `{gate}`: there is no metric `{name}`; near: {near or 'the run has no scores'}")


@dataclass(frozen=True)
class Delta:
    """A score compared with the baseline's.

    `verdict` is better, worse, same (the intervals overlap), unknown (an interval is missing) or incomparable. `reason`
    explains the last two.
    """

    result: Result
    before: Result
    change: float
    verdict: str
    reason: str | None = None


def compare(results: Results, baseline: Results) -> list[Delta]:
    """Compares the scores that both runs have. A difference counts if the intervals do not overlap.

    Raises:
        ValueError: when the two runs have no score in common.
    """
    earlier = baseline.by_name()
    deltas = [_delta(result, earlier[result.name]) for result in results.results if result.name in earlier]
    if not deltas:
        raise ValueError(
            "the run and its baseline have no score in common; evaluate both on the same sets and tasks, or leave "
            "--baseline out"
        )
    return deltas


def _delta(result: Result, before: Result) -> Delta:
    change = result.value - before.value if result.value != before.value else 0.0  # infinite ones too
    if why := difference(result, before):
        return Delta(result, before, change, "incomparable", why)
    if result.value == before.value:
        return Delta(result, before, change, "same")
    for score, whose in ((result, "this run's"), (before, "the baseline's")):
        # An interval without width claims a certainty that no estimate has.
        if score.low is None or score.high is None or score.low == score.high:
            return Delta(result, before, change, "unknown", f"{whose} score has no interval ({score.interval})")
    assert result.low is not None and result.high is not None and before.low is not None and before.high is not None
    apart = result.low > before.high or result.high < before.low
    verdict = "same" if not apart else ("better" if (change > 0) == result.higher_is_better else "worse")
    return Delta(result, before, change, verdict)

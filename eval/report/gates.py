"""Evaluates gates: conditions on scores, on their intervals, and on their difference from a baseline.

In the recipe of a chain, `STAGE:metric` is the score of a stage, as `RUN:STAGE` names its run; a metric alone is the
run's own. `eval/report/conditions.py` has the syntax.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.common.layout import RESULTS, STAGES
from configs.schema.evaluation import Evaluation
from configs.schema.recipe import Recipe, find_run, load_run
from configs.schema.stage_recipe import BASE, is_masked, parent_name
from eval.comparison.comparable import difference_within, hidden_by_bounds
from eval.information.score_names import score_names
from eval.people.missing import KIND as PEOPLE
from eval.people.missing import why_missing
from eval.report.baseline import Baseline, read_baseline, sentence
from eval.report.conditions import OPERATORS, Condition, read_condition, split_stage
from eval.results import CENTRED, Change, Failure, Result, Results, ScoreName, load_results
from eval.stage_facts import Role, applicable, asks_base, kind_of, role_of
from eval.statistics import pass_ks
from eval.summaries.summary_names import summary_metrics
from eval.text_metrics.text_scores import metrics_of_set, translation_metrics

NO_BASELINE = "there is no baseline; set report.baseline to a run, or name one: replica report RUN --baseline RUN"
# The last part of a score's name, by kind; tests compare them with what is scored.
PERPLEXITY = ("bits_per_byte", "perplexity", "nats_per_token")
WORDS = ("word_perplexity", "byte_perplexity")  # where a set counts words
OF_GROUPS = ("bits_per_byte", "perplexity", "word_perplexity")  # of each value of a field
COMPRESSORS = ("gzip", "xz", "zstd")
CODED = ("codec_bits_per_byte", "with_model_bits_per_byte")  # of a set in evaluation.compression.codec
PREQUENTIAL = "compression/training/prequential_bits_per_byte"
IN_CONTEXT = ("late_minus_early_nats", "other_minus_early_nats")  # where a set asks for them
CHAT = ("accuracy", "format", "stop_rate", "length")
PREFERENCE = ("accuracy", "longer", "less_repeated")


@dataclass(frozen=True)
class Gate:
    """A gate and its outcome.

    Attributes:
        left, right: the compared values; with a baseline, on the items that both runs have.
        reason: why the gate fails without a comparison: its score failed, or the two cannot be compared.
        detail: what the comparison with the baseline found.
        undecided: the gate compares with a baseline, and there is none. It has not passed.
    """

    text: str
    passed: bool
    left: float | None
    right: float | None
    reason: str | None = None
    detail: str | None = None
    undecided: bool = False

    def __str__(self) -> str:
        if self.reason is not None:
            return f"{self.text}   ({self.reason})"
        if self.detail is not None:
            return f"{self.text}   ({self.detail})"
        return f"{self.text}   ({self.left:.4g} against {self.right:.4g})"


def check_gates(run: Path, baseline: Path | None = None) -> list[Gate]:
    """Evaluates the gates of a run's recipe on its results.

    Args:
        run: an evaluated run directory.
        baseline: a run, or a directory with its `results.json` and items; None: `report.baseline` of the recipe.

    Raises:
        ValueError: for a gate with a syntax error or an unknown metric, or with a baseline that is missing.
    """
    recipe, results = load_run(run), load_results(run)
    against = read_baseline(recipe, run, results, baseline)
    return evaluate_gates(recipe.report.gates, results, results_of_stages(recipe), against)


def results_of_stages(recipe: Recipe) -> dict[str, Results | None]:
    """Reads the results of each stage of a recipe; None for one that has none yet."""
    runs = {name: recipe.run_directory / STAGES / name for name in recipe.stage_names}
    return {name: load_results(run) if (run / RESULTS).is_file() else None for name, run in runs.items()}


def evaluate_gates(
    gates: Sequence[str],
    results: Results,
    stages: Mapping[str, Results | None] | None = None,
    baseline: Baseline | None = None,
) -> list[Gate]:
    """Evaluates gates, as `eval/report/conditions.py` reads them.

    Args:
        gates: the conditions.
        results: scores of the run itself.
        stages: scores of its stages by name; None for a stage without.
        baseline: what `better than baseline` and `not worse than baseline` compare with.
    """
    known = {BASE: results, **(stages or {})}
    conditions = [read_condition(text) for text in gates]
    compared = [condition.left for condition in conditions if condition.on_baseline]
    found: Mapping[str, Change | str] = {}
    if compared:
        for condition in conditions:
            if condition.on_baseline:
                _score(condition.left, condition.text, known)  # an unknown name is said before a missing baseline
        if baseline is not None:
            found = baseline.changes([split_stage(name, known) for name in dict.fromkeys(compared)])
    return [
        _on_baseline(one, known, found.get(":".join(split_stage(one.left, known))))
        if one.on_baseline
        else _evaluate(one, known)
        for one in conditions
    ]


def _on_baseline(condition: Condition, known: Mapping[str, Results | None], change: Change | str | None) -> Gate:
    score = _score(condition.left, condition.text, known)
    if isinstance(score, Failure):
        return Gate(condition.text, False, None, None, f"no score: {score.reason}")
    if change is None:
        return Gate(condition.text, False, score.value, None, NO_BASELINE, undecided=True)
    if isinstance(change, str):
        return Gate(condition.text, False, score.value, None, change)
    values = (change.after, change.before)
    if change.verdict == "incomparable":
        return Gate(condition.text, False, *values, f"incomparable: {change.reason}")
    passed = change.verdict == "better" or (condition.sign == "not worse" and change.verdict != "worse")
    return Gate(condition.text, passed, *values, detail=sentence(change))


def gate_problems(recipe: Recipe) -> list[str]:
    """Finds the problems of a recipe's gates that are known before scoring.

    Metrics of lm-eval's tasks are not checked: only the task's own file tells its metrics, and whether it is a group.
    """
    known = sorted(_metrics(recipe))
    problems = []
    for text in recipe.report.gates:
        try:
            for name in read_condition(text).names:
                own = split_stage(name, {BASE, *recipe.stage_names})[1]
                opaque = own.startswith(f"{PEOPLE}/") or (
                    bool(recipe.evaluation.benchmarks.tasks) and own.startswith("benchmark/")
                )
                if name not in known and not opaque and not _is_group(name, recipe, known):
                    raise _unknown(name, text, known)
        except ValueError as error:
            problems.append(f"report.gates: {error}")
    return problems


def _is_group(name: str, recipe: Recipe, known: Collection[str]) -> bool:
    """Tells whether a name is a score of one value of a set's field `by`, which only the set's files know."""
    whole, _, group = name.rpartition("/")
    fields = {item.name: item.by for item in recipe.evaluation.perplexity}
    score = ScoreName.parse(split_stage(name, {BASE, *recipe.stage_names})[1])
    field, given = fields.get(score.subject), score.kind == "compression" or score.metric in OF_GROUPS
    return field is not None and given and whole in known and group.startswith(f"{field}=")


def baseline_problems(recipe: Recipe) -> list[str]:
    """Finds that the baseline that a recipe names has no scores."""
    if recipe.report.baseline is None:
        return []
    try:
        load_results(find_run(recipe.report.baseline))
    except ValueError as error:
        return [f"report.baseline: {error}"]
    return []


def gates_without_baseline(recipe: Recipe) -> list[str]:
    """Finds a gate that compares with a baseline, where the recipe names none; `replica report` may be given one."""
    on_baseline = [text for text in recipe.report.gates if text.rstrip().endswith("baseline")]
    if recipe.report.baseline is not None:
        return []
    return [
        f"gate `{text}` needs a baseline: set report.baseline to a run, or name one in `replica report RUN --baseline "
        "RUN`; it does not pass without one"
        for text in on_baseline[:1]
    ]


def gates_on_other_tasks(recipe: Recipe) -> list[str]:
    """Finds gates on a benchmark that the recipe does not list. They fail unless a listed group contains it."""
    listed = [entry.shown for entry in recipe.evaluation.benchmarks.entries]
    warnings = []
    for text in recipe.report.gates if listed else []:
        try:
            sides = [split_stage(name, {BASE, *recipe.stage_names})[1] for name in read_condition(text).names]
        except ValueError:
            continue  # `gate_problems` tells it
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
        yield from (f"perplexity/{item.name}/{metric}" for metric in IN_CONTEXT if item.late_minus_early)
    causal = recipe.model.causal if of_stage is None else not is_masked(recipe.stages[of_stage])
    yield from _sizes(section, role, of_stage, causal)
    if section.core.tasks:
        yield CENTRED
    for pairs in section.translation:
        named = translation_metrics(pairs)
        yield from (f"translation/{pairs.name}/{metric}{part}" for metric in named for part in parts)
    for documents in section.summarization:
        yield from (f"summarization/{documents.name}/{metric}" for metric in summary_metrics(documents))
        named = metrics_of_set(documents)
        yield from (f"summarization/{documents.name}/{metric}{part}" for metric in named for part in parts if part)
    for both in section.information:
        yield from (f"{name}{part}" for name in score_names(both) for part in parts)
    for chat in section.chat:
        asked_for = [*CHAT, *(f"pass@{k}" for k in pass_ks(chat.samples))]
        yield from (f"chat/{chat.name}/{metric}{part}" for metric in asked_for for part in parts)
    if role == "assistant" and (tuned := _tuned(recipe, of_stage)) is not None:
        yield f"conversations/{tuned}/nats_per_token"
    for preference in section.preference:
        yield from (f"preference/{preference.name}/{metric}{part}" for metric in PREFERENCE for part in parts)


def _sizes(section: Evaluation, role: Role, of_stage: int | None, causal: bool) -> Iterator[str]:
    """Yields the scores that are sizes of files."""
    if of_stage is None:  # the same for each stage
        for item in section.perplexity:
            yield from (f"compression/{item.name}/{program}_bits_per_byte" for program in COMPRESSORS)
    if not causal:  # a bound is no code
        return
    yield from (f"compression/{name}/{metric}" for name in section.compression.codec for metric in CODED)
    if role == "text":
        yield PREQUENTIAL


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


def _evaluate(condition: Condition, known: Mapping[str, Results | None]) -> Gate:
    text = condition.text
    left, right = _score(condition.left, text, known), condition.number
    other = _score(condition.right, text, known) if right is None else None
    failed = [side.reason for side in (left, other) if isinstance(side, Failure)]
    if failed:
        return Gate(text, False, None, None, f"no score: {failed[0]}")
    assert isinstance(left, Result)
    if isinstance(other, Result):
        right = other.value
        low, high = (left, other) if condition.sign.startswith("<") else (other, left)
        if why := difference_within(left, other) or hidden_by_bounds(low, high):
            return Gate(text, False, left.value, right, f"incomparable: {why}")
    assert right is not None
    if not condition.whole:
        return Gate(text, bool(OPERATORS[condition.sign](left.value, right)), left.value, right)
    return _whole(condition, left, other if isinstance(other, Result) else None, right)


def _whole(condition: Condition, left: Result, other: Result | None, right: float) -> Gate:
    """Compares the ends of intervals that are nearest to each other."""
    below = condition.sign.startswith("<")
    for score in filter(None, (left, other)):
        if score.low is None or score.high is None:
            return Gate(condition.text, False, left.value, right, f"{score.name} has no interval ({score.interval})")
    near = left.high if below else left.low
    end = right if other is None else (other.low if below else other.high)
    assert near is not None and end is not None
    passed = bool(OPERATORS[condition.sign](near, end))
    said = f"{near:.4g}, the {'upper' if below else 'lower'} end of the interval, against {end:.4g}"
    return Gate(condition.text, passed, near, end, detail=said)


def _score(name: str, gate: str, known: Mapping[str, Results | None]) -> Result | Failure:
    """Returns the score of this name, or its failure."""
    stage, metric = split_stage(name, known)
    results = known[stage]
    if results is None:
        return Failure(metric, f"stage `{stage}` has no results yet")
    scores = results.by_name()
    if metric in scores:
        return scores[metric]
    for failure in results.failures:
        if metric.startswith(f"{failure.name}/") or metric in _coded(failure.name):
            return failure
    if metric.startswith(f"{PEOPLE}/"):
        return Failure(metric, why_missing(results.people, metric))
    raise _unknown(name, gate, sorted(_prefixed(known)))


def _coded(part: str) -> list[str]:
    """The scores of a part of coded files, such as `compression/heldout/codec`; none for another part."""
    kind, name, rest, _ = ScoreName.parse(part)
    return [f"{kind}/{name}/{metric}" for metric in CODED] if (kind, rest) == ("compression", "codec") else []


def _prefixed(known: Mapping[str, Results | None]) -> Iterator[str]:
    for stage, results in known.items():
        yield from (name if stage == BASE else f"{stage}:{name}" for name in (results.by_name() if results else ()))


def _unknown(name: str, gate: str, known: Sequence[str]) -> ValueError:
    near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:10])
    return ValueError(f"gate `{gate}`: there is no metric `{name}`; near: {near or 'the run has no scores'}")

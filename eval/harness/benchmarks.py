"""Scores benchmarks by lm-eval (EleutherAI/lm-evaluation-harness), with our own 95% intervals and the chance level.

A task is searched in `include_path` first, where it needs no network. Other tasks are those of lm-eval.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.schema.evaluation import Benchmarks, BenchmarkTask
from data_prep.decontamination.benchmark_tasks import open_tasks, passages_of, quiet
from data_prep.decontamination.evaluation_sets import set_key
from data_prep.tokens.vocab import Vocab
from eval.contamination import labelled, split
from eval.harness.benchmark_groups import group_results, is_score, score_name
from eval.harness.benchmark_items import has_choices, right_choices, task_items
from eval.harness.task_settings import apply_settings, named_settings
from eval.harness.template_cache import templates_compiled_once
from eval.items.item import Item
from eval.parts import Scored
from eval.reading.reader import Reader
from eval.results import MEMBERS, Result
from eval.statistics import bootstrap, no_interval, wilson

if TYPE_CHECKING:
    from data_prep.decontamination.decontaminate import Touched
    from eval.harness.lm_eval_adapter import ReplicaLM

# Metrics of choosing an answer. `exact_match` is not one: it compares the greedy completion with the answer.
_GUESSED = {"acc", "acc_norm", "acc_bytes", "acc_mutual_info"}


def benchmark_results(
    section: Benchmarks,
    reader: Reader,
    vocab: Vocab,
    bootstrap_samples: int,
    progress: bool = True,
    touched: Touched | None = None,
    chat: bool = False,
) -> Scored:
    """Runs the recipe's tasks and returns one result per task and metric, and the items of all tasks.

    With `chat`, each item is a user's message in the chat template. If `touched` knows a task, touched and clean items
    also get separate results.

    Raises:
        ValueError: for an unknown task, data that cannot be loaded (such as a task of lm-eval without a network), or a
            task that does not fit the model's context.
    """
    from eval.harness.lm_eval_adapter import ReplicaLM  # lm-eval is heavy: only when there are tasks

    results: dict[str, Result] = {}
    items: dict[tuple[str, str], Item] = {}
    for entry in section.entries:
        adapter = ReplicaLM(reader, vocab, progress, chat)
        with templates_compiled_once():
            scored = _entry_results(entry, section, adapter, bootstrap_samples, touched)
        # A task may belong to several groups; its first score counts.
        for result in scored.results:
            results.setdefault(result.name, result)
        for item in scored.items:
            items.setdefault((item.subject, item.id), item)
    return Scored(list(results.values()), items=list(items.values()))


def _entry_results(
    entry: BenchmarkTask, section: Benchmarks, adapter: ReplicaLM, bootstrap_samples: int, touched: Touched | None
) -> Scored:
    """Scores one task or group; its results and items have the name that the recipe gives it."""
    chat = adapter.chat
    with tempfile.TemporaryDirectory(prefix="replica-datasets-") as cache, quiet():
        from lm_eval.evaluator import evaluate

        loaded = load_tasks(section.model_copy(update={"tasks": [entry]}), Path(cache))
        raw = evaluate(
            adapter, loaded, limit=entry.limit, bootstrap_iters=0, log_samples=True, apply_chat_template=chat
        )
    results: list[Result] = []
    items: list[Item] = []
    for name, task in loaded["tasks"].items():
        own = {**named_settings(task, entry, raw["n-shot"][name]), **({"chat template": "replica"} if chat else {})}
        made = _task_results(name, task, raw, entry.limit, bootstrap_samples, touched)
        cut = _cut_note(name, adapter, len({sample["doc_id"] for sample in raw["samples"][name]}))
        results += [
            replace(
                result,
                settings={**result.settings, **own},
                note="; ".join(filter(None, [result.note, cut])) or None,
            )
            for result in made
        ]
        items += task_items(name, task, raw, adapter.seconds, _tags(name, raw, touched))
    for group in loaded["groups"].values():
        results += group_results(group, raw, results)
    return Scored(
        [_renamed(result, entry) for result in results],
        items=[replace(item, subject=_subject(item.subject, entry)) for item in items],
    )


def _cut_note(name: str, adapter: ReplicaLM, total: int) -> str | None:
    """Tells how many items of a task did not fit into the context."""
    cut = sum(task == name for task, _ in adapter.cut)
    if not cut:
        return None
    return (
        f"{cut} of {total} items are longer than the context of {adapter.max_length} tokens: read without their start"
    )


def _subject(task: str, entry: BenchmarkTask) -> str:
    """Returns what scores call a task; members of a group that the recipe names follow a dot."""
    if entry.name is None:
        return task
    return entry.name if task == entry.task else f"{entry.name}.{task}"


def _renamed(result: Result, entry: BenchmarkTask) -> Result:
    """Gives a score, and those that a group names, the name that the recipe gives the task."""

    def named(name: str) -> str:
        kind, task, rest = name.split("/", 2)
        return f"{kind}/{_subject(task, entry)}/{rest}"

    settings = dict(result.settings)
    if MEMBERS in settings:
        settings[MEMBERS] = {named(name): weight for name, weight in settings[MEMBERS].items()}
    return replace(result, name=named(result.name), settings=settings)


def _tags(name: str, raw: dict[str, Any], touched: Touched | None) -> dict[int, list[str]]:
    """Maps each `doc_id` of a task to the subsets that it belongs to."""
    docs = {int(sample["doc_id"]): sample["doc"] for sample in raw["samples"][name]}
    masks = split(touched, f"benchmark/{name}", [passages_of(doc) for doc in docs.values()])
    return {number: [part for part, mask in masks.items() if mask[row]] for row, number in enumerate(docs)}


# --------------------------------------------------------------------------------------------------------------- tasks
def load_lm_eval() -> None:
    """Imports lm-eval, which takes seconds: ranks do so side by side, before one of them fetches data."""
    with quiet():
        import lm_eval.evaluator
        import lm_eval.tasks  # noqa: F401


def fetch_tasks(section: Benchmarks) -> None:
    """Fetches the data of tasks to where `datasets` keeps it on this machine.

    Raises:
        ValueError: see `load_tasks`.
    """
    with tempfile.TemporaryDirectory(prefix="replica-datasets-") as cache, quiet():
        load_tasks(section, Path(cache))


def load_tasks(section: Benchmarks, cache: Path) -> dict[str, Any]:
    """Loads the recipe's tasks for lm-eval's `evaluate`.

    See `data_prep.decontamination.benchmark_tasks.open_tasks`.
    """
    if section.include_path is not None and not Path(section.include_path).is_dir():
        raise ValueError(f"evaluation.benchmarks.include_path: {section.include_path} is not a directory; correct it")
    places = [] if section.include_path is None else [section.include_path]
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for entry in section.entries:
        opened = open_tasks([entry.task], places, cache, "evaluation.benchmarks.tasks")
        for task in opened["tasks"].values():
            apply_settings(task, entry)
            _allow_infinity(task)
        for kind, found in opened.items():
            loaded[kind].update(found)
    return loaded


def _allow_infinity(task: Any) -> None:
    """Makes a perplexity above the range of floats infinite, so that the task's other scores are not lost."""
    rules = getattr(task, "_aggregation_list", {})
    for metric, aggregate in list(rules.items()):

        def bounded(items: list[Any], aggregate: Any = aggregate) -> Any:
            try:
                return aggregate(items)
            except OverflowError:
                return math.inf

        rules[metric] = bounded


# ------------------------------------------------------------------------------------------------------------- results
def _task_results(
    name: str, task: Any, raw: dict[str, Any], limit: int | None, samples: int, touched: Touched | None
) -> list[Result]:
    logged = raw["samples"][name]
    total = raw["n-samples"][name]["original"]
    results = []
    for key, value in raw["results"][name].items():
        metric, _, filter_name = key.partition(",")
        if not is_score(key, value):
            continue
        items = [item for item in logged if item["filter"] == filter_name and metric in item]
        whole = _result(name, task, raw, key, items, float(value), samples)
        if limit and limit < total:
            whole = replace(whole, note=f"the first {len(items)} of {total} items")
        results.append(whole)
        masks = split(touched, f"benchmark/{name}", [passages_of(item["doc"]) for item in items])
        aggregate = task.aggregation().get(metric, _mean)
        for part, mask in masks.items():
            own = [item for item, inside in zip(items, mask, strict=True) if inside]
            score = float(aggregate([item[metric] for item in own]))
            results += labelled([_result(name, task, raw, key, own, score, samples)], part)
    return results


def _result(
    name: str, task: Any, raw: dict[str, Any], key: str, items: list[dict[str, Any]], value: float, samples: int
) -> Result:
    """Builds the result of one metric (`metric,filter`) over some items of a task."""
    metric, _, filter_name = key.partition(",")
    scores = [item[metric] for item in items]
    low, high, how = _interval(scores, value, task.aggregation().get(metric), samples)
    return Result(
        name=score_name(name, metric, filter_name),
        value=value,
        low=low,
        high=high,
        n=len(scores),
        unit="accuracy" if metric in _GUESSED else metric,
        higher_is_better=bool(task.higher_is_better().get(metric, True)),
        interval=how,
        chance=_chance(task, metric, items),
        task_version=str(raw["versions"][name]),
        set=set_key([item["doc_hash"], item["target_hash"]] for item in items),
        settings={
            "lm-eval": version("lm_eval"),
            "shots": raw["n-shot"][name],
            "prompts": set_key([json.dumps(item["arguments"], default=str)] for item in items)[:8],
        },
    )


def _mean(items: list[Any]) -> float:
    return float(sum(items) / len(items))


def _interval(scores: list[Any], value: float, aggregate: Any, samples: int) -> tuple[float | None, float | None, str]:
    numbers = all(isinstance(score, int | float) for score in scores)
    if numbers and set(scores) <= {0, 1} and math.isclose(value, sum(scores) / len(scores)):
        return *wilson(sum(scores), len(scores)), f"Wilson over {len(scores)} items"
    outcome = bootstrap(scores, aggregate or _mean, samples)
    if outcome is None:
        return None, None, no_interval(len(scores), "item")
    (low, high), drawn = outcome
    return low, high, f"bootstrap over {len(scores)} items ({drawn} resamples)"


def _chance(task: Any, metric: str, items: list[dict[str, Any]]) -> float | None:
    """Computes the accuracy of random guessing: the mean share of right answers among the choices.

    None for a task without choices, or with its own scoring rule.
    """
    if metric not in _GUESSED or not items or not has_choices(task):
        return None
    return sum(_share_of_right(task, item["doc"]) for item in items) / len(items)


def _share_of_right(task: Any, doc: Any) -> float:
    """Divides the right answers of an item by its choices."""
    count = len(task.doc_to_choice(doc))
    return sum(answer in range(count) for answer in right_choices(task, doc)) / count

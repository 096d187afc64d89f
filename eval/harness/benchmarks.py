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

from configs.schema.evaluation import Benchmarks
from data_prep.decontamination.benchmark_tasks import open_tasks, passages_of, quiet
from data_prep.decontamination.evaluation_sets import set_key
from data_prep.tokens.vocab import Vocab
from eval.contamination import labelled, split
from eval.harness.benchmark_groups import group_results, is_score, score_name
from eval.harness.benchmark_items import has_choices, right_choices, task_items
from eval.items.item import Item
from eval.parts import Scored
from eval.reading.reader import Reader
from eval.results import Items, Result
from eval.statistics import SEED, bootstrap, no_interval, wilson

if TYPE_CHECKING:
    from data_prep.decontamination.decontaminate import Touched

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

    adapter = ReplicaLM(reader, vocab, progress, chat)
    with tempfile.TemporaryDirectory(prefix="replica-datasets-") as cache, quiet():
        from lm_eval.evaluator import evaluate

        loaded = load_tasks(section, Path(cache))
        raw = evaluate(
            adapter, loaded, limit=section.limit, bootstrap_iters=0, log_samples=True, apply_chat_template=chat
        )
    results: list[Result] = []
    items: list[Item] = []
    for name, task in loaded["tasks"].items():
        results += _task_results(name, task, raw, section.limit, bootstrap_samples, touched)
        items += task_items(name, task, raw, adapter.seconds, _tags(name, raw, touched))
    if chat:
        results = [replace(result, settings={**result.settings, "chat template": "replica"}) for result in results]
    for group in loaded["groups"].values():
        results += group_results(group, raw, results)
    return Scored(results, items=items)


def _tags(name: str, raw: dict[str, Any], touched: Touched | None) -> dict[int, list[str]]:
    """Maps each `doc_id` of a task to the subsets that it belongs to."""
    docs = {int(sample["doc_id"]): sample["doc"] for sample in raw["samples"][name]}
    masks = split(touched, f"benchmark/{name}", [passages_of(doc) for doc in docs.values()])
    return {number: [part for part, mask in masks.items() if mask[row]] for row, number in enumerate(docs)}


# --------------------------------------------------------------------------------------------------------------- tasks
def load_tasks(section: Benchmarks, cache: Path) -> dict[str, Any]:
    """Loads the recipe's tasks for lm-eval's `evaluate`.

    See `data_prep.decontamination.benchmark_tasks.open_tasks`.
    """
    if section.include_path is not None and not Path(section.include_path).is_dir():
        raise ValueError(f"evaluation.benchmarks.include_path: {section.include_path} is not a directory; correct it")
    places = [] if section.include_path is None else [section.include_path]
    loaded = open_tasks(section.tasks, places, cache, "evaluation.benchmarks.tasks")
    for task in loaded["tasks"].values():
        _set_shots(task, section.num_fewshot)
        _allow_infinity(task)
    return loaded


def _set_shots(task: Any, num_fewshot: int | None) -> None:
    """Sets the number of shots as lm-eval does: the recipe's number replaces the task's own, unless that is 0."""
    own = task.get_config("num_fewshot")
    if own is None or (num_fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=SEED)


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
        items=_items(scores, value),
    )


def _items(scores: list[Any], value: float) -> Items | None:
    """Returns the items of a score that is their mean; None for other scores, such as a perplexity."""
    if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
        return None
    if not scores or not math.isclose(value, sum(scores) / len(scores), rel_tol=1e-9, abs_tol=1e-12):
        return None
    return Items([float(score) for score in scores], [1.0] * len(scores))


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

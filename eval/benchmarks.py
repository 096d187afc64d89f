"""Benchmark scores by lm-eval (EleutherAI/lm-evaluation-harness), with our own 95% intervals and the chance level.

Tasks are looked up in `include_path` first; those need no network. Any other name is one of lm-eval's own.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import logging
import math
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from configs.schema import Benchmarks
from data_prep.vocab import Vocab
from eval.results import Result
from eval.statistics import SEED, bootstrap, wilson
from pretrain.model import Transformer


def benchmark_results(
    section: Benchmarks, model: Transformer, vocab: Vocab, bootstrap_samples: int, progress: bool = True
) -> list[Result]:
    """Runs the recipe's tasks and returns one result per task and metric.

    Raises:
        ValueError: an unknown task, data that cannot be loaded (a task of lm-eval's own without a network), or a task
            that does not fit the model's context.
    """
    from eval.adapter import ReplicaLM  # lm-eval is heavy: only when there are tasks

    adapter = ReplicaLM(model, vocab, section.batch_size, progress)
    with tempfile.TemporaryDirectory(prefix="replica-datasets-") as cache, _quiet():
        from lm_eval.evaluator import evaluate

        loaded = load_tasks(section, Path(cache))
        raw = evaluate(adapter, loaded, limit=section.limit, bootstrap_iters=0, log_samples=True)
    results = []
    for name, task in loaded["tasks"].items():
        results += _task_results(name, task, raw, section.limit, bootstrap_samples)
    for group in loaded["groups"]:
        results += _group_results(group, raw, results)
    return results


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the bars and remarks of lm-eval and datasets off the screen; errors still come as exceptions."""
    import datasets

    loggers = [logging.getLogger(name) for name in ("lm_eval", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    datasets.disable_progress_bars()
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        datasets.enable_progress_bars()


# --------------------------------------------------------------------------------------------------------------- tasks
def load_tasks(section: Benchmarks, cache: Path) -> dict[str, Any]:
    """Builds the tasks as lm-eval's `evaluate` takes them: `tasks`, `groups` and `group_map`.

    lm-eval opens local data relative to the working directory; here a task's files are looked up beside its YAML, and
    the Arrow copies that `datasets` makes of them go to `cache`.
    """
    from lm_eval.tasks import TaskManager

    if section.include_path is not None and not Path(section.include_path).is_dir():
        raise ValueError(f"evaluation.benchmarks.include_path: there is no directory {section.include_path}")
    manager = TaskManager(include_path=section.include_path, include_defaults=False)
    if missing := [name for name in section.tasks if name not in manager.task_index]:
        local = sorted(manager.task_index)
        manager = TaskManager(include_path=section.include_path)  # reads thousands of YAML files: only if need be
        for name in missing:
            if name not in manager.task_index:
                near = difflib.get_close_matches(name, [*local, *manager.task_index], n=3, cutoff=0.5)
                raise ValueError(
                    f"evaluation.benchmarks.tasks: `{name}` is neither in {section.include_path or 'an include_path'} "
                    f"({', '.join(local) or 'no tasks'}) nor in lm-eval; did you mean {' or '.join(near) or 'another'}?"
                )
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in section.tasks:
        for kind, found in _load_task(manager, name, section.include_path, cache).items():
            loaded[kind].update(found)
    for task in loaded["tasks"].values():
        _set_shots(task, section.num_fewshot)
    return loaded


def _load_task(manager: Any, name: str, include_path: str | None, cache: Path) -> dict[str, Any]:
    import datasets

    file = manager.task_index[name].yaml_path
    local = include_path is not None and file is not None and Path(include_path).resolve() in file.resolve().parents
    usual_cache = datasets.config.HF_DATASETS_CACHE
    try:
        with contextlib.chdir(file.parent) if local else contextlib.nullcontext():
            if local:
                datasets.config.HF_DATASETS_CACHE = cache
            loaded: dict[str, Any] = manager.load([name])
            return loaded
    except Exception as error:  # whatever datasets and the hub's client raise, it means one thing here
        help_text = (
            f"see {file} and the files beside it"
            if local
            else "lm-eval's own tasks download their data: check the network, or use tasks with local data, "
            "as in configs/tasks"
        )
        raise ValueError(
            f"benchmark task `{name}`: its data could not be loaded ({type(error).__name__}: {error}); {help_text}"
        ) from error
    finally:
        datasets.config.HF_DATASETS_CACHE = usual_cache


def _set_shots(task: Any, num_fewshot: int | None) -> None:
    """As lm-eval does it: the recipe's number replaces the task's own, unless the task insists on none."""
    own = task.get_config("num_fewshot")
    if own is None or (num_fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=SEED)


# ------------------------------------------------------------------------------------------------------------- results
def _task_results(name: str, task: Any, raw: dict[str, Any], limit: int | None, samples: int) -> list[Result]:
    logged = raw["samples"][name]
    results = []
    for key, value in raw["results"][name].items():
        metric, _, filter_name = key.partition(",")
        if not filter_name or metric.endswith("_stderr"):
            continue
        kept = [item for item in logged if item["filter"] == filter_name and metric in item]
        scores = [item[metric] for item in kept]
        low, high, how = _interval(scores, float(value), task.aggregation().get(metric), samples)
        total = raw["n-samples"][name]["original"]
        results.append(
            Result(
                name=f"benchmark/{name}/{metric}" + ("" if filter_name == "none" else f"/{filter_name}"),
                value=float(value),
                low=low,
                high=high,
                n=len(scores),
                unit=metric,
                higher_is_better=bool(task.higher_is_better().get(metric, True)),
                interval=how,
                chance=_chance(task, metric, kept),
                task_version=str(raw["versions"][name]),
                signature=f"lm-eval {version('lm_eval')}, {raw['n-shot'][name]}-shot",
                note=f"the first {len(scores)} of {total} items" if limit and limit < total else None,
            )
        )
    return results


def _interval(scores: list[Any], value: float, aggregate: Any, samples: int) -> tuple[float | None, float | None, str]:
    numbers = all(isinstance(score, int | float) for score in scores)
    if numbers and set(scores) <= {0, 1} and math.isclose(value, sum(scores) / len(scores)):
        return *wilson(sum(scores), len(scores)), f"Wilson over {len(scores)} items"
    outcome = bootstrap(scores, aggregate or (lambda items: sum(items) / len(items)), samples)
    if outcome is None:
        return None, None, "none: a single item"
    (low, high), drawn = outcome
    return low, high, f"bootstrap over {len(scores)} items ({drawn} resamples)"


def _chance(task: Any, metric: str, items: list[dict[str, Any]]) -> float | None:
    """Accuracy of blind guessing: the mean of 1 / number of choices over the items themselves."""
    if task.OUTPUT_TYPE != "multiple_choice" or metric not in {"acc", "acc_norm", "exact_match"} or not items:
        return None
    return sum(1 / len(item["arguments"]) for item in items) / len(items)


def _group_results(group: str, raw: dict[str, Any], results: list[Result]) -> list[Result]:
    """A group's aggregates; their intervals combine those of the members as independent errors."""
    by_name = {result.name: result for result in results}
    out = []
    for key, value in raw["results"].get(group, {}).items():
        metric, _, filter_name = key.partition(",")
        if not filter_name or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        names = [f"benchmark/{member}/{metric}" for member in _leaves(group, raw["group_subtasks"])]
        members = [by_name[name] for name in names if name in by_name]
        total = sum(member.n for member in members)
        if not total:
            continue
        widths = [(member.high or 0) - (member.low or 0) for member in members]
        half = math.sqrt(sum((m.n / total * width / 2) ** 2 for m, width in zip(members, widths, strict=True)))
        chances = [member.chance for member in members if member.chance is not None]
        out.append(
            Result(
                name=f"benchmark/{group}/{metric}",
                value=float(value),
                low=float(value) - half,
                high=float(value) + half,
                n=total,
                unit=metric,
                higher_is_better=members[0].higher_is_better,
                interval=f"combined from {len(members)} tasks",
                chance=sum(chances) / len(chances) if len(chances) == len(members) else None,
                task_version=str(raw["versions"].get(group)),
                signature=members[0].signature,
            )
        )
    return out


def _leaves(group: str, children: dict[str, list[str]]) -> list[str]:
    return [leaf for child in children.get(group, []) for leaf in (_leaves(child, children) or [child])]

"""Reads the items of lm-eval's tasks (EleutherAI/lm-evaluation-harness). No other file of data_prep imports lm-eval.

Tasks are looked up in the given directories first; those need no network. Any other name is one of lm-eval's own.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import logging
import re
import tempfile
from collections.abc import Collection, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from configs.safety.trust import check_trusted

SHIPPED_TASKS = Path(__file__).resolve().parents[2] / "configs" / "tasks"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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


def check_places(places: Sequence[str]) -> None:
    """Refuses directories whose tasks would run, but for the shipped ones and those named with `--trust`.

    lm-eval's YAML names Python functions (`!function`), metrics to be downloaded and templates that reach Python.

    Raises:
        ValueError: naming the first of them, and how to trust it.
    """
    for place in places:
        if Path(place).resolve() != SHIPPED_TASKS:
            check_trusted(place, "evaluation.benchmarks.include_path")


@functools.lru_cache(maxsize=2)
def _manager(kind: Any, places: tuple[str, ...], defaults: bool, stamp: tuple[Any, ...]) -> Any:
    """Makes lm-eval's `TaskManager` once for all tasks of an evaluation. `stamp` changes with the files."""
    return kind(include_path=list(places) or None, include_defaults=defaults)


def _stamp(places: Sequence[str]) -> tuple[Any, ...]:
    files = sorted(file for place in places for file in Path(place).rglob("*.y*ml"))
    return tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)


def unknown_tasks(names: Sequence[str], places: Sequence[str]) -> list[str]:
    """Returns names that stand in no task file, neither of the places nor of lm-eval's own.

    Only text is searched, in seconds at most: lm-eval itself needs many seconds to read its thousands of files. So a
    name that is not returned may still be none, but a misspelt one is found before training.
    """
    missing = set(names)
    for file in (file for place in places for file in sorted(Path(place).rglob("*.y*ml"))):
        missing -= _named_in(file, missing)
    if not missing or find_spec("lm_eval") is None:
        return []  # all are known, or nobody can tell
    likely_first = sorted(_files_of_lm_eval(), key=lambda file: not any(name in file.name for name in missing))
    for file in likely_first:
        missing -= _named_in(file, missing)
        if not missing:
            break
    return [name for name in names if name in missing]


@functools.lru_cache(maxsize=1)
def _files_of_lm_eval() -> list[Path]:
    found = find_spec("lm_eval")  # does not import it
    assert found is not None and found.origin is not None
    return list((Path(found.origin).parent / "tasks").rglob("*.y*ml"))


def _named_in(file: Path, names: Collection[str]) -> set[str]:
    text = file.read_text(encoding="utf-8", errors="replace")
    return {name for name in names if name in text and re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", text)}


def open_tasks(names: Sequence[str], places: Sequence[str], cache: Path, setting: str) -> dict[str, Any]:
    """Builds the tasks as lm-eval's `evaluate` takes them: `tasks`, `groups` and `group_map`.

    lm-eval opens local data relative to the working directory; here a task's files are looked up beside its YAML, and
    the Arrow copies that `datasets` makes of them go to `cache`.

    Args:
        names: of tasks, groups or tags.
        places: directories with task files; those further on win.
        cache: an empty directory, which must last as long as the tasks.
        setting: of the recipe, named in messages.

    Raises:
        ValueError: for a place that is neither shipped nor trusted, without lm-eval, for an unknown task, or for data
            that cannot be loaded.
    """
    check_places(places)
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError(f"{setting} needs lm-eval; install it with `pip install 'gpt-replica[eval]'`") from error

    places = [str(Path(place).resolve()) for place in places]  # a task is opened from its own directory
    manager = _manager(TaskManager, tuple(places), False, _stamp(places))
    if missing := [name for name in names if name not in manager.task_index]:
        local = sorted(manager.task_index)
        manager = _manager(TaskManager, tuple(places), True, _stamp(places))  # thousands of files: only if need be
        for name in missing:
            if name not in manager.task_index:
                near = difflib.get_close_matches(name, sorted(manager.task_index), n=3, cutoff=0.5)
                raise ValueError(
                    f"{setting}: `{name}` is neither in {' nor in '.join(places) or 'an include_path'} "
                    f"({', '.join(local) or 'no tasks'}) nor in lm-eval; did you mean {' or '.join(near) or 'another'}?"
                )
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        for kind, found in _open_task(manager, name, places, cache).items():
            loaded[kind].update(found)
    return loaded


def _open_task(manager: Any, name: str, places: Sequence[str], cache: Path) -> dict[str, Any]:
    import datasets

    file = manager.task_index[name].yaml_path
    local = file is not None and any(Path(place).resolve() in file.resolve().parents for place in places)
    usual_cache = datasets.config.HF_DATASETS_CACHE
    try:
        with contextlib.chdir(file.parent) if local else contextlib.nullcontext():
            if local:
                datasets.config.HF_DATASETS_CACHE = cache
            loaded: dict[str, Any] = manager.load([name])
            return loaded
    except Exception as error:  # whatever datasets and the hub's client raise, it means one thing here
        help_text = f"see {file} and the files beside it" if local else _without_network(name)
        raise ValueError(
            f"benchmark task `{name}`: its data could not be loaded ({type(error).__name__}: {error}); {help_text}"
        ) from error
    finally:
        datasets.config.HF_DATASETS_CACHE = usual_cache


def _without_network(name: str) -> str:
    """How to get the data of one of lm-eval's own tasks to a machine without a network."""
    return (
        "lm-eval's own tasks download their data, so check the network. To score without one, fill a cache on a "
        f"machine that has one: HF_HOME=DIR replica eval RUN 'evaluation.benchmarks.tasks=[\"{name}\"]' "
        "evaluation.benchmarks.limit=1. Then set HF_HOME to a copy of DIR, and HF_HUB_OFFLINE=1. Or use tasks with "
        "local data, as in configs/tasks"
    )


def task_passages(names: Sequence[str], places: Sequence[str], setting: str) -> Iterator[tuple[str, list[list[str]]]]:
    """(task, passages of each of its items) for all tasks behind the names; raises `ValueError` like `open_tasks`."""
    with tempfile.TemporaryDirectory(prefix="replica-datasets-") as cache:
        with quiet():
            tasks = open_tasks(names, places, Path(cache), setting)["tasks"]
        for name, task in sorted(tasks.items()):
            yield name, [passages_of(doc) for doc in task.eval_docs]


def passages_of(doc: Any) -> list[str]:
    """Every string of a task's item, wherever it stands in it, in order."""
    if isinstance(doc, str):
        return [doc]
    if isinstance(doc, dict):
        return [text for value in doc.values() for text in passages_of(value)]
    return [text for value in doc for text in passages_of(value)] if isinstance(doc, list | tuple) else []

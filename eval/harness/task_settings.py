"""Applies a recipe's settings to a task of lm-eval, and tells which task was scored and how.

A task's own YAML decides most of a benchmark score. Its fingerprint therefore stands in the result, beside that of the
rendered prompts: two scores of one name that were asked otherwise are never compared.
"""

from __future__ import annotations

import json
import re
from typing import Any

from configs.common.files import fingerprint
from configs.schema.evaluation import BenchmarkTask

# What the recipe may replace, and results name by itself.
_NAMED_APART = ("num_fewshot",)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_FIELD = re.compile(r"[A-Za-z_]\w*")


def apply_settings(task: Any, entry: BenchmarkTask) -> None:
    """Sets shots, seed and generation of a task as lm-eval does, and checks that it can be asked.

    The recipe's number of shots replaces the task's own, unless that is 0.

    Raises:
        ValueError: for a task without items, one that names a field which its items lack, or settings of generation for
            a task that does not generate.
    """
    name = task.task_name
    own = task.get_config("num_fewshot")
    if own is None or (entry.num_fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=entry.num_fewshot or 0)
    task.set_fewshot_seed(seed=entry.seed)
    if wanted := generation(entry):
        if task.OUTPUT_TYPE != "generate_until":
            raise ValueError(
                f"benchmark task `{name}` does not generate (its output_type is {task.OUTPUT_TYPE}); remove its "
                "gen_kwargs from evaluation.benchmarks.tasks"
            )
        task.set_config(key="generation_kwargs", value=wanted, update=True)
    _check_items(name, task)


def generation(entry: BenchmarkTask) -> dict[str, Any]:
    """Returns the settings of generation that replace those of the task."""
    return {} if entry.gen_kwargs is None else entry.gen_kwargs.model_dump(exclude_none=True)


def task_fingerprint(task: Any) -> str:
    """Returns 8 hexadecimal digits of what a task's YAML says, with the recipe's settings of generation.

    Files and formatting of the YAML do not count, nor do functions' places in memory.
    """
    config = {key: value for key, value in task.dump_config().items() if key not in _NAMED_APART}
    text = json.dumps(config, sort_keys=True, default=str, ensure_ascii=False)
    return fingerprint(_ADDRESS.sub("", text))[:8]


def named_settings(task: Any, entry: BenchmarkTask, shots: int) -> dict[str, Any]:
    """Returns the entries of `Result.settings` on the task."""
    found: dict[str, Any] = {"task": task_fingerprint(task)}
    if shots:
        found["seed of the shots"] = entry.seed
    if wanted := generation(entry):
        found["generation"] = json.dumps(wanted, sort_keys=True, ensure_ascii=False)
    return found


def _check_items(name: str, task: Any) -> None:
    docs = task.eval_docs
    if not len(docs):
        raise ValueError(f"benchmark task `{name}` has no items; check its data and its splits")
    first = docs[0]
    for key in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        value = task.get_config(key) if hasattr(task, "get_config") else None
        # lm-eval takes a word that is no field as the prompt itself, the same for every item.
        if isinstance(value, str) and _FIELD.fullmatch(value) and isinstance(first, dict) and value not in first:
            raise ValueError(
                f"benchmark task `{name}`: its {key} names the field `{value}`, which its items lack (their fields: "
                f"{', '.join(first)}); correct the task's YAML or its data"
            )

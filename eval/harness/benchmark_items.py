"""Makes the items of lm-eval's tasks: one for each document of a task, whatever filters it is scored by."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from eval.harness.benchmark_groups import is_score, metric_name
from eval.items.item import Item, beginning, ending, hash_of

_MOST_CHOICE = 500  # characters of a choice


def task_items(
    name: str,
    task: Any,
    raw: Mapping[str, Any],
    seconds: Mapping[tuple[str, int], float] | None = None,
    tags: Mapping[int, Sequence[str]] | None = None,
) -> list[Item]:
    """Returns an item for each document of a task, in the order of its documents.

    Args:
        name: of the task.
        task: lm-eval's `Task`.
        raw: the return value of lm-eval's `evaluate`, with its samples.
        seconds: task and `doc_id` -> seconds that its requests took.
        tags: `doc_id` -> subsets, such as `clean`.
    """
    logged: dict[int, list[dict[str, Any]]] = {}
    for sample in raw["samples"][name]:
        logged.setdefault(int(sample["doc_id"]), []).append(sample)
    kinds = {key: _kind(raw, name, key) for key, value in raw["results"][name].items() if is_score(key, value)}
    items = []
    for number, samples in sorted(logged.items()):
        first = samples[0]
        measures: dict[str, tuple[float, float]] = {}
        statistics: dict[str, tuple[float, ...]] = {}
        for sample in samples:
            for key, kind in kinds.items():
                metric, _, filter_name = key.partition(",")
                if sample["filter"] == filter_name and metric in sample and kind is not None:
                    value = sample[metric]
                    if kind == "statistics":
                        statistics[metric_name(metric, filter_name)] = _numbers(value)
                    else:
                        measures[metric_name(metric, filter_name)] = _measure(kind, value)
        asked = (first["doc_hash"], first["target_hash"], json.dumps(first["arguments"], default=str))
        items.append(
            Item(
                id=str(number),
                hash=hash_of(*asked),
                asked=_question(task, first),
                subject=name,
                seconds=(seconds or {}).get((name, number)),
                measures=measures,
                statistics=statistics,
                tags=tuple((tags or {}).get(number, ())),
                **_answered(task, samples),
            )
        )
    return items


# ------------------------------------------------------------------------------------------------------------- measures
def _kind(raw: Mapping[str, Any], name: str, key: str) -> str | None:
    """Tells how the score of a task comes from its items.

    `mean`: of numbers; `bits`: log-likelihoods over bytes, as bits per byte; `statistics`: another function of numbers;
    None: a function of texts or of something else.
    """
    metric, _, filter_name = key.partition(",")
    values = [sample[metric] for sample in raw["samples"][name] if sample["filter"] == filter_name and metric in sample]
    score = float(raw["results"][name][key])
    numbers = [_numbers(value) for value in values]
    if not numbers or not all(numbers) or len({len(one) for one in numbers}) > 1:
        return None
    if len(numbers[0]) == 1 and _close(score, math.fsum(one[0] for one in numbers) / len(numbers)):
        return "mean"
    if len(numbers[0]) == 2:
        below = math.fsum(one[1] for one in numbers)
        if below and _close(score, -math.fsum(one[0] for one in numbers) / below / math.log(2)):
            return "bits"
    return "statistics"


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)


def _measure(kind: str, value: Any) -> tuple[float, float]:
    numbers = _numbers(value)
    return (numbers[0], 1.0) if kind == "mean" else (-numbers[0] / math.log(2), numbers[1])


def _numbers(value: Any) -> tuple[float, ...]:
    """Returns finite numbers as a tuple; empty for anything else."""
    parts = value if isinstance(value, list | tuple) else [value]
    try:
        numbers = tuple(float(part) for part in parts if not isinstance(part, str))
    except (TypeError, ValueError):
        return ()
    return numbers if len(numbers) == len(parts) and all(map(math.isfinite, numbers)) else ()


# --------------------------------------------------------------------------------------------------------------- texts
def _question(task: Any, sample: dict[str, Any]) -> str:
    """The question without shots where the task has one; else the end of what was asked.

    Where choices stand before the same end, as in WinoGrande: what they share, a gap, and the end.
    """
    if getattr(task, "multiple_input", 0):
        contexts = [str(one[0]) for one in sample["arguments"]]
        same = takewhile(lambda letters: len(set(letters)) == 1, zip(*contexts, strict=False))
        before = "".join(letters[0] for letters in same)
        return ending(f"{before[: before.rfind(' ') + 1]}___{sample['arguments'][0][1]}")
    text = task.doc_to_text(sample["doc"])
    if isinstance(text, str) and text.strip():
        return beginning(text)
    asked = sample["arguments"][0][0]
    rolling = len(sample["arguments"][0]) == 1
    return beginning(str(asked)) if rolling else ending(str(asked))


def _answered(task: Any, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fields of an item on reference, answer, choices and log-likelihoods, by lm-eval's type of output."""
    first, kind = samples[0], task.OUTPUT_TYPE
    responses = [one[0] for one in first["resps"]]
    if kind == "multiple_choice":
        return _chosen(task, first, responses)
    if kind == "loglikelihood":
        target = str(first["arguments"][0][1])
        (nats, greedy) = responses[0]
        size = len(target.encode("utf-8", "replace"))
        notes = {"greedy": "the likeliest continuation" if greedy else "another is likelier"}
        return {"reference": beginning(target), "log_likelihoods": (float(nats),), "bytes": size, "notes": notes}
    if kind == "loglikelihood_rolling":
        nats = responses[0][0] if isinstance(responses[0], tuple) else responses[0]
        text = str(first["arguments"][0][0])
        return {"log_likelihoods": (float(nats),), "bytes": len(text.encode("utf-8", "replace"))}
    answer = str(responses[0])
    notes = {
        f"extracted by {sample['filter']}": beginning(_shown(sample["filtered_resps"]), _MOST_CHOICE)
        for sample in samples
        if _shown(sample["filtered_resps"]) != answer
    }
    size = len(answer.encode("utf-8", "replace"))
    return {"reference": beginning(_shown(first["target"])), "answer": beginning(answer), "bytes": size, "notes": notes}


def right_choices(task: Any, doc: Any) -> set[Any]:
    """Returns the indices of the right choices of an item, as lm-eval's `ConfigurableTask.process_results` finds them.

    An answer that is none of the choices stays as it is.
    """
    choices = task.doc_to_choice(doc)
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    return {
        choices.index(answer) if isinstance(answer, str) and answer in choices else answer
        for answer in (gold if isinstance(gold, list) else [gold])
    }


def has_choices(task: Any) -> bool:
    """Tells whether the choices of a task are known; a task may have its own scoring rule."""
    return (
        task.OUTPUT_TYPE == "multiple_choice"
        and hasattr(task, "doc_to_choice")
        and not callable(task.get_config("process_results"))
    )


def _chosen(task: Any, sample: dict[str, Any], responses: Sequence[Any]) -> dict[str, Any]:
    """Of several choices: their texts and log-likelihoods, the likeliest, and the right ones."""
    arguments = sample["arguments"]
    contexts, texts = ([str(one[place]) for one in arguments] for place in (0, 1))
    count = len(arguments)
    if getattr(task, "multiple_input", 0):  # the choices stand before the same end, as in WinoGrande
        texts = contexts
    elif count % 2 == 0 and contexts[count // 2 :] == [""] * (count // 2) and contexts[0]:
        count //= 2  # acc_mutual_info asks each choice without the question too
    choices = tuple(ending(text, _MOST_CHOICE) for text in texts[:count])
    nats = tuple(float(one[0]) for one in responses[:count])
    known = right_choices(task, sample["doc"]) if has_choices(task) else {sample["target"]}
    named = [choices[one] if isinstance(one, int) and 0 <= one < count else str(one) for one in known]
    return {
        "reference": beginning(" or ".join(named)),
        "answer": choices[max(range(count), key=lambda index: nats[index])],
        "choices": choices,
        "log_likelihoods": nats,
        "bytes": sum(len(text.encode("utf-8", "replace")) for text in texts[:count]),
    }


def _shown(value: Any) -> str:
    """A target or a filtered response as text."""
    if isinstance(value, list | tuple):
        return _shown(value[0]) if len(value) == 1 else "; ".join(map(_shown, value))
    return str(value)

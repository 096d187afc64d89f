"""Scores the answers of an assistant: accuracy, pass@k, stop rate, format and length.

Answers are checked by the function that training rewards (`pretrain.rewards.answers.check_answer`). An answer that does
not end within its longest length counts as wrong: the model has not answered.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from configs.schema.evaluation import ChatSet
from data_prep.chat.messages import Prompt
from data_prep.decontamination.chat_sets import read_prompts
from data_prep.decontamination.evaluation_sets import set_key
from data_prep.tokens.chat_template import ChatTemplate
from eval.chat_setting import ChatSetting
from eval.contamination import labelled, split
from eval.items.item import Item, beginning, ending, hash_of, shared_seconds
from eval.parts import Scored
from eval.reading.reader import Reader
from eval.reading.windows import Report
from eval.results import Result, Sample
from eval.statistics import Interval, bootstrap_ratio, no_interval, pass_at_k, pass_ks, wilson
from pretrain.generation.noise import noise_keys
from pretrain.generation.player import Answer, Request
from pretrain.generation.sampling import Sampling
from pretrain.generation.tools import forced_by
from pretrain.rewards.answers import last_answer
from pretrain.rewards.completion import Completion
from pretrain.rewards.registry import exact_reward, format_reward

if TYPE_CHECKING:
    from data_prep.decontamination.decontaminate import Touched

SHOWN_SAMPLES = 4

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Graded:
    """One answer: what it says, and what became of it."""

    text: str
    tokens: int
    finished: bool
    right: bool
    formed: bool


def chat_results(
    section: ChatSet,
    reader: Reader,
    setting: ChatSetting,
    report: Report | None = None,
    touched: Touched | None = None,
) -> Scored:
    """Answers the prompts of a set, greedily or with several samples each, and scores the answers.

    Args:
        section: the set.
        reader: of the model.
        setting: how conversations are written down and scored.
        report: receives the number of finished answers.
        touched: items that training documents touch.

    Raises:
        ValueError: when the set cannot be read.
    """
    chat = setting.chat
    prompts, left = read_prompts(section, chat.system)
    began = time.perf_counter()
    graded = answer_prompts(section, prompts, reader, setting, report)
    seconds = time.perf_counter() - began
    checked = is_checked(section, prompts)
    greedy = section.samples == 1
    how = "greedy" if greedy else f"{section.samples} samples at temperature {section.temperature:g}"
    remarks = [f"{how}, at most {section.max_new_tokens} tokens", str(left)]
    passages = [[prompt.text, prompt.reference or ""] for prompt in prompts]
    stamp = {
        "note": "; ".join(filter(None, remarks)),
        "settings": {
            "samples": section.samples,
            "temperature": 0.0 if greedy else section.temperature,
            "new tokens": section.max_new_tokens,
            "system": set_key([[chat.system]])[:8] if chat.system else None,
            "tools": ", ".join(chat.tools) or None,
        },
    }

    values = [_values(answers, checked) for answers in graded]

    def scored(chosen: Sequence[int]) -> list[Result]:
        own = {**stamp, "set": set_key(passages[number] for number in chosen)}
        return _results(section, [values[number] for number in chosen], setting.bootstrap_samples, own)

    results = scored(range(len(prompts)))
    masks = split(touched, f"chat/{section.name}", passages)
    for part, mask in masks.items():
        results += labelled(scored(np.flatnonzero(mask).tolist()), part)
    items = _items(prompts, graded, values, masks, seconds)
    return Scored(
        results,
        [
            _sample(section, number, prompts[number], graded[number][0], how, checked)
            for number in range(min(SHOWN_SAMPLES, len(prompts)))
        ],
        items,
    )


def is_checked(section: ChatSet, prompts: Sequence[Prompt]) -> bool:
    """Tells whether the answers of a set can be right or wrong: every prompt has a reference with a final answer."""
    references = [prompt.reference for prompt in prompts]
    return all(text is not None and (section.shape == "gsm8k" or last_answer(text)) for text in references)


# ------------------------------------------------------------------------------------------------------------- answers
def answer_prompts(
    section: ChatSet,
    prompts: Sequence[Prompt],
    reader: Reader,
    setting: ChatSetting,
    report: Report | None = None,
) -> list[list[Graded]]:
    """Answers each prompt `section.samples` times. A prompt that fills the context has empty answers, all wrong."""
    checked, context = is_checked(section, prompts), reader.context_length
    template, seed, forced = setting.template, setting.seed, forced_by(setting.chat.tools, setting.template)
    sampling = Sampling(
        temperature=0.0 if section.samples == 1 else section.temperature,
        seed=seed,
        stop=template.end_ids,
        vocab_size=template.vocab.size,
    )
    graded: list[list[Graded]] = [[Graded("", 0, False, False, False)] * section.samples for _ in prompts]
    rendered = [template.prompt(prompt.messages) for prompt in prompts]
    fitting = [number for number, ids in enumerate(rendered) if len(ids) < context]
    requests = [
        Request(
            rendered[number],
            min(section.max_new_tokens, context - len(rendered[number])),
            sampling,
            section.samples,
            [int(key) for key in _keys(seed, section, number)],
            forced=forced,
        )
        for number in fitting
    ]
    answers = iter(reader.generate(requests, report))
    for number in fitting:
        drawn = [next(answers) for _ in range(section.samples)]
        graded[number] = [_grade(template, prompts[number], rendered[number], one, checked) for one in drawn]
    return graded


def _keys(seed: int, section: ChatSet, number: int) -> npt.NDArray[np.uint64]:
    return noise_keys(seed, f"chat/{section.name}", [number] * section.samples, range(section.samples))


def _grade(template: ChatTemplate, prompt: Prompt, ids: list[int], answer: Answer, checked: bool) -> Graded:
    text = template.parse(answer.ids).text
    finished = answer.finish == "stop"
    completion = Completion(text, prompt.reference, ids, answer.ids, finished)
    right = checked and exact_reward(completion).value == 1
    return Graded(text, len(answer.ids), finished, right, format_reward(completion).value == 1)


# ------------------------------------------------------------------------------------------------------------- results
_SHARES = {
    "accuracy": "share of right answers",
    "format": "share of answers with one #### in the last line",
    "stop_rate": "share of answers that end",
}
_LENGTH = "length"


def _values(answers: Sequence[Graded], checked: bool) -> dict[str, float]:
    """What the answers to one prompt add to each score, which is the mean over prompts."""
    n = len(answers)
    values = {}
    if checked:
        right = sum(answer.right for answer in answers)
        values["accuracy"] = right / n
        values |= {f"pass@{k}": pass_at_k(n, right, k) for k in pass_ks(n)}
        values["format"] = sum(answer.formed for answer in answers) / n
    values["stop_rate"] = sum(answer.finished for answer in answers) / n
    values[_LENGTH] = sum(answer.tokens for answer in answers) / n
    return values


def _results(
    section: ChatSet, values: Sequence[Mapping[str, float]], samples: int, stamp: dict[str, Any]
) -> list[Result]:
    """Scores prompts, whose values `_values` gives."""
    results = []
    for metric in values[0]:
        of_prompts = np.array([one[metric] for one in values])  # (P,)
        unit = _SHARES.get(metric, f"share of prompts with a right answer among {metric.removeprefix('pass@')}")
        binary = metric in _SHARES and section.samples == 1
        result = _mean(f"chat/{section.name}/{metric}", of_prompts, unit, samples, binary, stamp)
        if metric == _LENGTH:
            result = replace(result, unit="tokens per answer", higher_is_better=False)
        results.append(result)
    return results


def _mean(name: str, values: Floats, unit: str, samples: int, binary: bool, stamp: dict[str, Any]) -> Result:
    n = len(values)
    interval: Interval | None
    if binary:
        interval, how = wilson(float(values.sum()), n), f"Wilson over {n} prompts"
    else:
        interval = bootstrap_ratio(values, np.ones(n), samples)
        how = f"bootstrap over {n} prompts" if interval else no_interval(n, "prompt")
    low, high = interval or (None, None)
    return Result(name, float(values.mean()), low, high, n, unit, True, how, **stamp)


def _items(
    prompts: Sequence[Prompt],
    graded: Sequence[Sequence[Graded]],
    values: Sequence[Mapping[str, float]],
    masks: Mapping[str, npt.NDArray[np.bool_]],
    seconds: float,
) -> list[Item]:
    """One item for each prompt. A length is neither better nor worse, so it is a fact of the item and no measure."""
    took = shared_seconds(seconds, [1 + sum(answer.tokens for answer in answers) for answers in graded])
    items = []
    for number, (prompt, answers, own) in enumerate(zip(prompts, graded, values, strict=True)):
        first, *others = answers
        notes = {"finish": "stop" if first.finished else "length"}
        notes |= {f"answer {place}": beginning(answer.text) for place, answer in enumerate(others, start=2)}
        items.append(
            Item(
                id=str(number + 1),
                hash=hash_of(prompt.text, prompt.reference or ""),
                asked=ending(prompt.text),
                reference=None if prompt.reference is None else beginning(prompt.reference),
                answer=beginning(first.text),
                bytes=sum(len(answer.text.encode("utf-8", "replace")) for answer in answers),
                tokens=sum(answer.tokens for answer in answers),
                seconds=took[number],
                measures={metric: (value, 1.0) for metric, value in own.items() if metric != _LENGTH},
                tags=tuple(part for part, mask in masks.items() if mask[number]),
                notes=notes,
            )
        )
    return items


def _sample(section: ChatSet, number: int, prompt: Prompt, answer: Graded, how: str, checked: bool) -> Sample:
    text = answer.text if answer.finished else f"{answer.text} …"
    title = f"{section.name}, prompt {number + 1}"
    return Sample("chat", title, prompt.text, text, how, prompt.reference, answer.right if checked else None)

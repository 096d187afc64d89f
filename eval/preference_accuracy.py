"""Scores a reward model by how often it agrees with preference pairs, beside baselines that read no meaning.

A reward model that only likes long answers can look good: people often prefer the longer one. So each set is also
scored by "the longer answer is better" and by "the answer that repeats fewer words is better".
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.schema.evaluation import PreferenceSet
from data_prep.chat.messages import Message, Pair
from data_prep.decontamination.chat_sets import read_preferences
from data_prep.decontamination.evaluation_sets import set_key
from eval.chat_setting import ChatSetting
from eval.comparison.significance import LEVEL, compare_ratios
from eval.contamination import labelled, split
from eval.items.item import Item, beginning, ending, hash_of, shared_seconds
from eval.parts import Scored
from eval.reading.reader import Reader
from eval.reading.windows import Report
from eval.results import Result
from eval.statistics import wilson

if TYPE_CHECKING:
    from data_prep.decontamination.decontaminate import Touched


def preference_results(
    section: PreferenceSet,
    reader: Reader,
    setting: ChatSetting,
    report: Report | None = None,
    touched: Touched | None = None,
) -> Scored:
    """Scores a set by a reward model and by the baselines.

    Pairs that are longer than the model's context are left out, as in training, and counted.

    Args:
        section: the set.
        reader: of the reward model.
        setting: how conversations are written down and scored.
        report: receives the number of scored answers.
        touched: items that training documents touch.

    Raises:
        ValueError: when the set cannot be read, or no pair fits the context.
    """
    context_length = reader.context_length
    pairs, left = read_preferences(section, setting.chat.system)
    render = setting.template.render
    rows = [[render([*pair.prompt, answer]).ids for answer in (pair.chosen, pair.rejected)] for pair in pairs]
    fitting = [number for number, both in enumerate(rows) if max(map(len, both)) <= context_length]
    if not fitting:
        raise ValueError(f"preference set `{section.name}`: no pair fits model.context_length {context_length}")
    kept = [pairs[number] for number in fitting]
    began = time.perf_counter()
    rewards = reader.rewards([ids for number in fitting for ids in rows[number]], report)
    sizes = [sum(map(len, rows[number])) for number in fitting]
    took = shared_seconds(time.perf_counter() - began, sizes)
    rewarded = list(zip(rewards[::2], rewards[1::2], strict=True))
    agreed = {"accuracy": [_agrees(*both) for both in rewarded]}
    for name, measure in (("longer", _length), ("less_repeated", _variety)):
        agreed[name] = [_agrees(measure(pair.chosen), measure(pair.rejected)) for pair in kept]
    beyond = len(pairs) - len(kept)
    remarks = [str(left), f"{beyond:,} pairs longer than the context left out" if beyond else ""]
    note = "; ".join(filter(None, remarks))
    passages = [_passages(pair) for pair in kept]

    def scored(chosen: Sequence[int]) -> list[Result]:
        stamp = {"set": set_key(passages[number] for number in chosen), "settings": {"context": context_length}}
        values = {name: [outcomes[number] for number in chosen] for name, outcomes in agreed.items()}
        return _results(section.name, values, note, stamp, setting.bootstrap_samples)

    results = scored(range(len(kept)))
    masks = split(touched, f"preference/{section.name}", passages)
    for part, mask in masks.items():
        results += labelled(scored(np.flatnonzero(mask).tolist()), part)
    items = [
        replace(
            _item(fitting[place] + 1, pair, rewarded[place]),
            tokens=sizes[place],
            seconds=took[place],
            measures={name: (outcomes[place], 1.0) for name, outcomes in agreed.items()},
            tags=tuple(part for part, mask in masks.items() if mask[place]),
        )
        for place, pair in enumerate(kept)
    ]
    return Scored(results, items=items)


def _item(number: int, pair: Pair, rewards: tuple[float, float]) -> Item:
    """The item of a pair; its answer is the one that the reward model prefers."""
    chosen, rejected = rewards
    answers = tuple(beginning(answer.text) for answer in (pair.chosen, pair.rejected))
    return Item(
        id=str(number),
        hash=hash_of(*_passages(pair)),
        asked=ending("\n\n".join(message.text for message in pair.prompt)),
        reference=answers[0],
        answer=None if chosen == rejected else answers[0 if chosen > rejected else 1],
        choices=answers,
        bytes=sum(len(answer.text.encode("utf-8", "replace")) for answer in (pair.chosen, pair.rejected)),
        notes={"reward of the chosen answer": f"{chosen:.6g}", "reward of the rejected answer": f"{rejected:.6g}"},
    )


def _agrees(chosen: float, rejected: float) -> float:
    """1 where the chosen answer is worth more, 0 where it is worth less, a half where both are worth the same."""
    return 0.5 + 0.5 * float(np.sign(chosen - rejected))


def _length(answer: Message) -> float:
    return float(len(answer.text))


def _variety(answer: Message) -> float:
    """The share of words that are not a repetition of an earlier one; 1 for a text without words."""
    words = answer.text.casefold().split()
    return len(set(words)) / len(words) if words else 1.0


def _passages(pair: Pair) -> list[str]:
    return [message.text for message in (*pair.prompt, pair.chosen, pair.rejected)]


_NOTES = {
    "accuracy": "the answer of the higher reward is the chosen one",
    "longer": "baseline: the longer answer (in characters) is the chosen one",
    "less_repeated": "baseline: the answer that repeats a smaller share of its words is the chosen one",
}


def _results(name: str, agreed: dict[str, list[float]], note: str, stamp: dict[str, Any], samples: int) -> list[Result]:
    results = []
    for metric, outcomes in agreed.items():
        n, total = len(outcomes), sum(outcomes)
        ties = outcomes.count(0.5)
        remarks = [_NOTES[metric], f"{ties:,} ties count as a half" if ties else "", note]
        results.append(
            Result(
                name=f"preference/{name}/{metric}",
                value=total / n,
                low=wilson(total, n)[0],
                high=wilson(total, n)[1],
                n=n,
                unit="share of pairs",
                higher_is_better=True,
                interval=f"Wilson over {n} pairs",
                chance=0.5,
                note="; ".join(filter(None, remarks)),
                **stamp,
            )
        )
    ours, *baselines = results
    said = [_beside(agreed["accuracy"], agreed[one.named.metric], one.named.metric, samples) for one in baselines]
    return [replace(ours, note="; ".join([ours.note or "", *said])), *baselines]


def _beside(ours: Sequence[float], baseline: Sequence[float], label: str, samples: int) -> str:
    """Says whether the model agrees with more pairs than a baseline does, on the same pairs."""
    ones = np.ones(len(ours))
    found = compare_ratios((np.asarray(ours), ones), (np.asarray(baseline), ones), samples)
    above = "above" if found.after > found.before else "below"
    by = above if found.p < LEVEL else "no different from"
    return f"{by} `{label}` ({found.method}, p = {found.p:.2g})"

"""Scores few-shot translation, beside the source itself as its translation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from configs.schema.pair_sets import TranslationSet
from data_prep.decontamination.evaluation_sets import set_key
from data_prep.tokens.vocab import Vocab
from eval.contamination import labelled, split
from eval.generation.generated_pairs import generated_texts, generation_settings, prompt_room
from eval.items.item import Item, beginning, hash_of
from eval.pairs.prompts import fit_prompt, is_cut, read_pairs
from eval.parts import Scored
from eval.reading.reader import Reader
from eval.reading.windows import Report
from eval.results import Sample
from eval.text_metrics.text_scores import COPY, TextScores, check_metrics, translation_metrics

if TYPE_CHECKING:
    from data_prep.decontamination.decontaminate import Touched

SHOWN_SAMPLES = 3


def translation_results(
    section: TranslationSet,
    reader: Reader,
    vocab: Vocab,
    bootstrap_samples: int,
    report: Report | None = None,
    touched: Touched | None = None,
) -> Scored:
    """Translates the set greedily and scores it; also scores the unchanged source, and returns some translations.

    If `touched` knows the set, touched and clean pairs are also scored separately.
    """
    shots, pairs = read_pairs(section)
    references = [pair.targets for pair in pairs]
    check_metrics(section, references)  # before translating, because a package may be missing
    room = prompt_room(section, reader)
    fitted = [fit_prompt(section, shots, pair.source, vocab, room) for pair in pairs]
    hypotheses, took = generated_texts(section, reader, vocab, [ids for ids, _ in fitted], report)
    shown = sum(count for _, count in fitted) / len(fitted)
    fit = f"{shown:.1f} of {section.shots} shots fit on average" if section.shots else "no examples in the prompt"
    note = f"{fit}; greedy, at most {section.max_new_tokens} new tokens"
    if cut := sum(
        not count and is_cut(section, pair, vocab, room) for pair, (_, count) in zip(pairs, fitted, strict=True)
    ):
        note += f"; {cut} of {len(pairs)} sources are longer than the context and lost their start"
    passages = [pair.passages for pair in pairs]
    scores = TextScores(section, hypotheses, references)
    stamp = {"note": note, "settings": generation_settings(section, shots), "set": set_key(passages)}
    results = scores.results(stamp, bootstrap_samples)
    copied = {**stamp, "note": "the source itself as its translation", "settings": {"normalize": section.normalize}}
    results += [
        result
        for result in TextScores(section, [pair.source for pair in pairs], references, COPY).results(
            copied, bootstrap_samples
        )
        if result.named.metric in translation_metrics(section)
    ]
    masks = split(touched, f"translation/{section.name}", passages)
    for part, mask in masks.items():
        chosen = [number for number, inside in enumerate(mask) if inside]
        own = {**stamp, "set": set_key(passages[number] for number in chosen)}
        results += labelled(scores.results(own, bootstrap_samples, chosen), part)
    samples = [
        Sample("translation", f"{section.name}, pair {index + 1}", pair.source, text, "greedy", pair.target)
        for index, (pair, text) in enumerate(zip(pairs[:SHOWN_SAMPLES], hypotheses, strict=False))
    ]
    statistics, measures = scores.statistics(), scores.measures()
    items = [
        Item(
            id=str(index + 1),
            hash=hash_of(*pair.passages),
            asked=beginning(pair.source),
            reference=beginning(pair.target),
            answer=beginning(hypotheses[index]),
            bytes=len(hypotheses[index].encode("utf-8", "replace")),
            seconds=took[index],
            statistics=statistics[index],
            measures=measures[index],
            tags=tuple(part for part, mask in masks.items() if mask[index]),
            notes={"shots": str(fitted[index][1])},
        )
        for index, pair in enumerate(pairs)
    ]
    return Scored(results, samples, items)

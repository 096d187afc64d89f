"""Scores a model's summaries of a set beside those of baselines that choose sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.schema.pair_sets import SummarySet
from data_prep.decontamination.evaluation_sets import set_key
from data_prep.tokens.vocab import Vocab
from eval.contamination import labelled, split
from eval.generation.generated_pairs import generated_texts, generation_settings, prompt_room
from eval.items.item import Item, beginning, hash_of
from eval.parts import Scored
from eval.reading.reader import Reader
from eval.reading.windows import Report
from eval.results import Result, Sample
from eval.statistics import bootstrap_ratio, no_interval
from eval.summaries.choices import Informed, choose, informed_choices
from eval.summaries.summary_documents import Document, SummaryPrompt, read_summaries, summary_prompt
from eval.summaries.summary_names import BASELINES, INFORMATION, kept_name
from eval.text_metrics.text_scores import TextScores, check_metrics

if TYPE_CHECKING:
    from data_prep.decontamination.decontaminate import Touched

KIND = SummarySet.kind
SHOWN_SAMPLES = 3


class _Scores:
    """Collects the scores of a set, and what each document adds to them."""

    def __init__(self, section: SummarySet, documents: Sequence[Document], samples: int) -> None:
        self.section, self.documents, self.samples = section, documents, samples
        self.results: list[Result] = []
        self.measures: list[dict[str, tuple[float, float]]] = [{} for _ in documents]
        self.statistics: list[dict[str, tuple[float, ...]]] = [{} for _ in documents]

    def stamp(self, note: str, settings: dict[str, Any], places: Sequence[int]) -> dict[str, Any]:
        """Returns the fields of results that describe the set."""
        passages = (self.documents[place].pair.passages for place in places)
        return {"note": note, "settings": settings, "set": set_key(passages)}

    def add(self, prefix: str, outputs: Sequence[str], stamp: dict[str, Any], places: Sequence[int]) -> TextScores:
        """Scores summaries of the documents at `places`."""
        references = [self.documents[place].pair.targets for place in places]
        scores = TextScores(self.section, outputs, references, prefix)
        self.results += scores.results(stamp, self.samples)
        for place, measures, statistics in zip(places, scores.measures(), scores.statistics(), strict=True):
            self.measures[place] |= measures
            self.statistics[place] |= statistics
        return scores

    def add_kept(self, informed: Informed, stamp: dict[str, Any]) -> None:
        """Scores the bits of the rest that each choice saves, per bit that it keeps."""
        n = len(informed.places)
        for name, every in informed.kept.items():
            saved, kept = (
                np.array(bits) for bits in zip(*((one.saved_bits, one.kept_bits) for one in every), strict=True)
            )
            interval = bootstrap_ratio(saved, kept, self.samples)
            self.results.append(
                Result(
                    name=f"{KIND}/{self.section.name}/{kept_name(name)}",
                    value=float(saved.sum() / kept.sum()),
                    low=interval[0] if interval else None,
                    high=interval[1] if interval else None,
                    n=n,
                    unit="bits of the rest saved per bit kept",
                    higher_is_better=True,
                    interval=f"bootstrap over {n} documents, {self.samples} resamples"
                    if interval
                    else no_interval(n, "document"),
                    **stamp,
                )
            )
            for place, one in zip(informed.places, every, strict=True):
                self.measures[place][kept_name(name)] = (one.saved_bits, one.kept_bits)


def summary_results(
    section: SummarySet,
    reader: Reader,
    vocab: Vocab,
    bootstrap_samples: int,
    report: Report | None = None,
    touched: Touched | None = None,
) -> Scored:
    """Summarises the set greedily and scores it beside baselines; returns some summaries.

    If `touched` knows the set, the model's summaries of touched and clean documents are also scored separately.

    Raises:
        ValueError: see `read_summaries`; for a tokenizer of another language; for prompts without room.
    """
    shots, documents = read_summaries(section)
    check_metrics(section, [document.pair.targets for document in documents])
    room = prompt_room(section, reader)
    prompts = [summary_prompt(section, shots, one.pair.source, vocab, room) for one in documents]
    outputs, took = generated_texts(section, reader, vocab, [prompt.ids for prompt in prompts], report)
    scores, everything = _Scores(section, documents, bootstrap_samples), range(len(documents))
    stamp = scores.stamp(_note(section, prompts), generation_settings(section, shots), everything)
    own = scores.add("", outputs, stamp, everything)
    masks = split(touched, f"{KIND}/{section.name}", [document.pair.passages for document in documents])
    for part, mask in masks.items():
        places = [place for place in everything if mask[place]]
        part_stamp = scores.stamp(stamp["note"], stamp["settings"], places)
        scores.results += labelled(own.results(part_stamp, bootstrap_samples, places), part)
    _add_baselines(scores)
    informed = informed_choices(section, documents, reader, vocab, report)
    _add_informed(scores, informed)
    items = [
        Item(
            id=str(place + 1),
            hash=hash_of(*document.pair.passages),
            asked=beginning(document.pair.source),
            reference=beginning(document.pair.target),
            answer=beginning(outputs[place]),
            bytes=len(outputs[place].encode("utf-8", "replace")),
            seconds=took[place],
            statistics=scores.statistics[place],
            measures=scores.measures[place],
            tags=tuple(part for part, mask in masks.items() if mask[place]),
            notes={"shots": str(prompts[place].shots)} | ({"document": "cut"} if prompts[place].cut else {}),
        )
        for place, document in enumerate(documents)
    ]
    return Scored(scores.results, _samples(section, documents, outputs, informed), items)


def _choice_settings(section: SummarySet) -> dict[str, Any]:
    return {
        "normalize": section.normalize,
        "split": section.split,
        "sentences": section.sentences,
        "max sentences": section.max_sentences,
    }


def _add_baselines(scores: _Scores) -> None:
    section, documents = scores.section, scores.documents
    long = sum(document.count > section.max_sentences for document in documents)
    for name, how in BASELINES.items():
        outputs = [
            document.chosen(choose(section, document, name, place, len(document.sentences), section.sentences))
            for place, document in enumerate(documents)
        ]
        note = f"{section.sentences} of the {section.split} at most, {how}"
        if long and name != "lead":
            note += f"; of {long} longer documents, among the first {section.max_sentences}"
        stamp = scores.stamp(note, _choice_settings(section), range(len(documents)))
        scores.add(f"{name}_", outputs, stamp, range(len(documents)))


def _add_informed(scores: _Scores, informed: Informed) -> None:
    section = scores.section
    if not informed.places:
        return
    note = f"{section.sentences} of the {section.split} at most, whose presence saves most bits of the rest"
    if informed.cut:
        note += f"; {informed.cut} of {len(informed.places)} documents were cut, by whole {section.split}, to fit"
    if informed.short:
        note += f"; {informed.short} documents with fewer than two {section.split} in the context are left out"
    stamp = scores.stamp(note, _choice_settings(section), informed.places)
    chosen = [
        scores.documents[place].chosen(kept.numbers)
        for place, kept in zip(informed.places, informed.kept[INFORMATION], strict=True)
    ]
    scores.add(f"{INFORMATION}_", chosen, stamp, informed.places)
    stamp["note"] = note.partition("; ")[2] or None
    scores.add_kept(informed, stamp)


def _note(section: SummarySet, prompts: Sequence[SummaryPrompt]) -> str:
    """Tells what the prompts hold, and what they had no room for."""
    note = f"greedy, at most {section.max_new_tokens} new tokens"
    if section.shots:
        shown = sum(prompt.shots for prompt in prompts) / len(prompts)
        note = f"{shown:.1f} of {section.shots} shots fit on average; {note}"
    if cut := sum(prompt.cut for prompt in prompts):
        note += f"; {cut} of {len(prompts)} documents are longer than the context and lost their last {section.split}"
    if broken := sum(prompt.broken for prompt in prompts):
        note += f"; of {broken} not even the first one fits whole, and the start of the prompt is cut off"
    return note


def _samples(
    section: SummarySet, documents: Sequence[Document], outputs: Sequence[str], informed: Informed
) -> list[Sample]:
    """Returns the first summaries, and beside the first one the sentences chosen by code length."""
    shown = [
        Sample(
            "summary",
            f"{section.name}, document {place + 1}",
            document.pair.source,
            output,
            "greedy",
            document.pair.target,
        )
        for place, (document, output) in enumerate(zip(documents[:SHOWN_SAMPLES], outputs, strict=False))
    ]
    for place, kept in zip(informed.places[:1], informed.kept.get(INFORMATION, ())[:1], strict=True):
        document = documents[place]
        title = f"{section.name}, document {place + 1}, {section.split} that save most bits"
        text = document.chosen(kept.numbers)
        shown.append(Sample("summary", title, document.pair.source, text, "no generation", document.pair.target))
    return shown

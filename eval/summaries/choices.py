"""Chooses sentences of the documents of a set in every way that summaries are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from configs.schema.pair_sets import SummarySet
from data_prep.tokens.vocab import Vocab
from eval.reading.reader import Reader
from eval.reading.windows import Report
from eval.summaries.extraction import at_random, best, lead, lexrank, oracle
from eval.summaries.information import KeptSentences, coded, most_informative, weighed
from eval.summaries.summary_documents import Document
from eval.summaries.summary_names import INFORMATION, WEIGHED
from eval.text_metrics.text_scores import rouge_of

Choices = list[tuple[int, ...]]  # numbers of the sentences of each document


def choose(section: SummarySet, document: Document, name: str, number: int, offered: int, most: int) -> tuple[int, ...]:
    """Chooses sentences of a document.

    Args:
        section: its tokenizer is LexRank's too.
        document: the document.
        name: a key of `BASELINES`.
        number: of the document in its set.
        offered: choose among so many first sentences.
        most: largest number of sentences.
    """
    if name == "lead":
        return tuple(lead(offered, most))
    if name == "random":
        return tuple(at_random(offered, most, number))
    rouge = rouge_of(section)
    if name == "lexrank":
        return tuple(best(lexrank([rouge.tokenizer.tokenize(one) for one in document.sentences[:offered]]), most))

    def against_references(numbers: list[int]) -> float:
        found = rouge.scores([document.chosen(numbers)], [document.pair.targets], ["rouge1", "rouge2"])
        return float(sum(scores[0].fmeasure for scores in found.values()))

    return tuple(oracle(offered, most, against_references))


@dataclass(frozen=True)
class Informed:
    """Choices by code length.

    Attributes:
        places: numbers of the documents in their set.
        kept: choice -> what its sentences say of the rest, for each of these documents.
        cut: documents whose last sentences the context has no room for.
        short: documents that are left out, because the context has no two sentences of them.
    """

    places: list[int] = field(default_factory=list)
    kept: dict[str, list[KeptSentences]] = field(default_factory=dict)
    cut: int = 0
    short: int = 0


def informed_choices(
    section: SummarySet, documents: Sequence[Document], reader: Reader, vocab: Vocab, report: Report | None = None
) -> Informed:
    """Chooses by code length in the first `information_items` documents, and weighs other choices in the same ones."""
    first = documents[: section.information_items]
    read = [coded(document.sentences, vocab, reader.context_length) for document in first]
    places = [place for place, one in enumerate(read) if len(one.units) > 1]
    if not places:
        return Informed(short=len(first))
    kept: dict[str, list[KeptSentences]] = {}
    for name in WEIGHED:
        if name == INFORMATION:
            chosen = most_informative([read[place] for place in places], section.sentences, reader, report)
        else:
            sizes = [len(read[place].units) for place in places]
            chosen = [
                choose(section, documents[place], name, place, size, min(section.sentences, size - 1))
                for place, size in zip(places, sizes, strict=True)
            ]
        choices = [(read[place], numbers) for place, numbers in zip(places, chosen, strict=True)]
        kept[name] = weighed(choices, reader)
    cut = sum(len(read[place].units) < first[place].count for place in places)
    return Informed(places, kept, cut, len(first) - len(places))

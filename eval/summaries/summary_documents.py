"""Reads documents with their summaries, and cuts by whole sentences what is longer than the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from configs.schema.pair_sets import SummarySet
from data_prep.decontamination.pair_files import TextPair
from data_prep.tokens.vocab import Vocab
from eval.pairs.prompts import fit_prompt, prompt_ids, read_pairs
from eval.text_metrics.sentences import split_text

_UNSPACED_ENDS = tuple("。！？…”’」』）")


@dataclass(frozen=True)
class Document:
    """A document with its reference summaries.

    Attributes:
        pair: source and targets.
        sentences: sentences or lines of the source, as the set says, at most its `max_sentences`.
        count: sentences or lines of the whole source.
    """

    pair: TextPair
    sentences: tuple[str, ...]
    count: int

    def chosen(self, numbers: Sequence[int]) -> str:
        """Returns the text of some of its sentences, one a line."""
        return "\n".join(self.sentences[number] for number in numbers)


def read_summaries(section: SummarySet) -> tuple[list[TextPair], list[Document]]:
    """Reads the set; returns the solved examples and the documents to score.

    Raises:
        ValueError: for what `read_pairs` refuses, for a document without a sentence, and for an empty summary.
    """
    shots, pairs = read_pairs(section)
    documents = []
    for number, pair in enumerate([*shots, *pairs], start=1):
        where = f"{section.called}: item {number} of {section.path}"
        sentences = split_text(pair.source, section.split)
        if not any(map(_has_words, sentences)):
            raise ValueError(
                f"{where} has no sentence in the field `{section.source_field}`, so there is nothing to summarise; "
                "correct it or take it out"
            )
        if not all(map(_has_words, pair.targets)):
            raise ValueError(
                f"{where} has an empty summary in the field `{section.target_field}`, so no summary can be scored; "
                "correct it or take it out"
            )
        documents.append(Document(pair, tuple(sentences[: section.max_sentences]), len(sentences)))
    return shots, documents[len(shots) :]


def _has_words(text: str) -> bool:
    return any(map(str.isalnum, text))


def joined(sentences: Sequence[str], split: str) -> str:
    """Puts sentences together as a text: lines, or with blanks where the language has them."""
    if split == "lines":
        return "\n".join(sentences)
    return "".join(
        one if one.endswith(_UNSPACED_ENDS) or number == len(sentences) - 1 else f"{one} "
        for number, one in enumerate(sentences)
    )


@dataclass(frozen=True)
class SummaryPrompt:
    """A prompt, and what of the document and of the shots it holds.

    Attributes:
        ids: token ids.
        shots: number of solved examples in it.
        cut: whole sentences were left out at the document's end.
        broken: not even the first sentence fits; the start of the prompt is missing.
    """

    ids: list[int]
    shots: int
    cut: bool = False
    broken: bool = False


def summary_prompt(
    section: SummarySet, shots: Sequence[TextPair], source: str, vocab: Vocab, room: int
) -> SummaryPrompt:
    """Builds a prompt of at most `room` tokens: with fewer shots, then with fewer of the document's last sentences."""
    ids, kept = fit_prompt(section, shots, source, vocab, room)
    if kept or len(prompt_ids(section, [], source, vocab)) <= room:
        return SummaryPrompt(ids, kept)
    sentences = split_text(source, section.split)
    low, high = 0, len(sentences) - 1  # so many fit, and at most so many
    best: list[int] = []
    while low < high:
        middle = (low + high + 1) // 2
        tried = prompt_ids(section, [], joined(sentences[:middle], section.split), vocab)
        if len(tried) <= room:
            low, best = middle, tried
        else:
            high = middle - 1
    return SummaryPrompt(best, 0, cut=True) if best else SummaryPrompt(ids, 0, broken=True)

"""Scores a perplexity set by its convention: as a whole, by a field, and clean and touched documents apart."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.schema.evaluation import PerplexitySet
from data_prep.decontamination.evaluation_sets import SetText, set_key
from data_prep.tokens.vocab import Vocab
from eval.contamination import Mask, labelled, split
from eval.likelihood.compressors import PROGRAMS, compression_results
from eval.likelihood.conventions import Convention, counted_texts, described, of_text
from eval.likelihood.document_items import document_items
from eval.likelihood.in_context import gain_results, score_gains, with_gains
from eval.likelihood.perplexity import counted, perplexity_results, score_texts
from eval.parts import Scored
from eval.reading.reader import Reader
from eval.reading.windows import Report
from eval.results import Result

if TYPE_CHECKING:
    from data_prep.decontamination.decontaminate import Touched

# More values than this are no languages or domains, but names of documents.
MOST_GROUPS = 200
# What each value of a field is scored by: nats per token and perplexity per byte would say the same again.
OF_GROUPS = ("bits_per_byte", "perplexity", "word_perplexity")
_NOT_IN_NAMES = str.maketrans(dict.fromkeys(" \t\n\r/<>=:", "_"))


def perplexity_set_results(
    item: PerplexitySet,
    documents: Sequence[SetText],
    reader: Reader,
    vocab: Vocab,
    bootstrap_samples: int,
    report: Report | None = None,
    touched: Touched | None = None,
) -> Scored:
    """Scores the documents of a set; see `configs.schema.evaluation.PerplexitySet` for the conventions.

    Raises:
        ValueError: as `Convention.of`, `score_texts` and `score_gains`, and for too many values of the field `by`.
    """
    how = Convention.of(item, reader.context_length)
    scored = [one for one in documents if one.text]
    groups = group_masks(item, scored)
    texts = counted_texts(item, [one.text for one in (documents if item.stream == "text" else scored)])
    began = time.perf_counter()
    scores = score_texts(reader, vocab, [text.read for text in texts], how, report)
    seconds = time.perf_counter() - began
    scores = counted(scores, texts, item.words, how.joined)
    make = partial(
        perplexity_results,
        item.name,
        stride=f"up to {how.context}" if how.pieces else how.stride,
        bootstrap_samples=bootstrap_samples,
        of=byte_kind(item),
    )
    stamp = partial(_stamped, settings=described(item, reader.context_length), words=item.words, vocab=vocab)
    passages = [[text.text] for text in texts]
    results = stamp(make(scores=scores), key=set_key(passages))
    apart = {} if item.stream != "documents" else split(touched, f"perplexity/{item.name}", passages)
    for part, mask in {**groups, **apart}.items():
        own = scores.of(mask)
        if not len(own.nats):
            continue
        key = set_key(text for text, inside in zip(passages, mask, strict=True) if inside)
        made = stamp(make(scores=own), key=key)
        grouped = [result for result in made if result.named.metric in OF_GROUPS]
        results += labelled(made, part) if part in apart else _of_group(grouped, part)
    if item.stream == "documents":
        ids = [one.id for one in scored]
        items = document_items([text.text for text in texts], scores, seconds, {**groups, **apart}, ids)
    else:
        items = document_items([vocab.end_of_document.join(text.text for text in texts)], scores, seconds)
    if item.late_minus_early:
        gains = score_gains(reader, vocab, [text.read for text in texts], how, report)
        results += stamp(gain_results(item.name, gains, bootstrap_samples), key=set_key(passages))
        items = with_gains(items, np.unique(scores.document).tolist(), gains)
    return Scored(results, items=items)


def compressed_set_results(
    item: PerplexitySet, documents: Sequence[SetText], programs: Sequence[str] = PROGRAMS
) -> list[Result]:
    """Compresses what is scored, as a whole and by the field `by`."""
    scored = [one for one in documents if one.text]
    texts = [text.text for text in counted_texts(item, [one.text for one in documents])]
    make = partial(compression_results, item.name, settings=of_text(item), of=byte_kind(item), programs=programs)
    results = make(texts)
    if item.stream == "end_of_document":  # one stream, as the model reads it; gates compare scores of equal sets
        results = [replace(result, n=1) for result in results]
    for group, mask in group_masks(item, scored).items():
        results += _of_group(make([text for text, inside in zip(texts, mask, strict=True) if inside]), group)
    return results


def byte_kind(item: PerplexitySet) -> str:
    """Returns what follows `byte` in units: normalised bytes are other bytes."""
    return " of normalised text" if item.normalize == "training" else ""


def group_masks(item: PerplexitySet, documents: Sequence[SetText]) -> dict[str, Mask]:
    """Returns `FIELD=VALUE` -> a mask (documents,), in the order of the values.

    Raises:
        ValueError: for too many values, or two that scores cannot be named after.
    """
    if item.by is None:
        return {}
    values = np.array([one.group for one in documents], dtype=object)
    groups = sorted({str(value) for value in values})
    if len(groups) > MOST_GROUPS:
        raise ValueError(
            f"perplexity set `{item.name}`: the field `{item.by}` has {len(groups):,} values, which is more than the "
            f"{MOST_GROUPS} that are scored apart; choose a field with fewer"
        )
    named = {group: f"{item.by}={group.translate(_NOT_IN_NAMES)}" for group in groups}
    if len(set(named.values())) < len(groups):
        alike = sorted(group for group in groups if list(named.values()).count(named[group]) > 1)
        raise ValueError(
            f"perplexity set `{item.name}`: values of the field `{item.by}` differ only in characters that names of "
            f"scores cannot have ({', '.join(alike)}); rename them"
        )
    return {name: values == group for group, name in named.items()}


def _of_group(results: Sequence[Result], group: str) -> list[Result]:
    return [replace(result, name=f"{result.name}/{group}") for result in results]


def _stamped(results: list[Result], settings: dict[str, Any], words: str, vocab: Vocab, key: str) -> list[Result]:
    """Adds the set's key and settings to results, and the tokenizer's fingerprint to those per token."""
    return [
        replace(
            result,
            set=key,
            settings={**settings, "words": words} if result.named.metric == "word_perplexity" else settings,
            tokenizer=vocab.fingerprint if result.unit.endswith("per token") else None,
        )
        for result in results
    ]

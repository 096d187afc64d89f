"""Scores few-shot translation by BLEU and chrF of sacrebleu, with its signature (Post 2018, arXiv:1804.08771)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from configs.schema.pair_sets import TranslationSet
from data_prep.decontamination.evaluation_sets import set_key
from data_prep.tokens.chat_template import ChatTemplate
from data_prep.tokens.vocab import Vocab
from eval.contamination import labelled, split
from eval.generation.completions import Stops, complete
from eval.items.item import Item, beginning, hash_of, shared_seconds
from eval.pairs.prompts import fit_prompt, is_cut, read_pairs
from eval.parts import Scored
from eval.reading.reader import Reader
from eval.reading.windows import Report
from eval.results import Result, Sample
from eval.statistics import no_interval

if TYPE_CHECKING:
    from data_prep.decontamination.decontaminate import Touched

SHOWN_SAMPLES = 3


def bleu_with(tokenize: str) -> Any:
    """Creates sacrebleu's BLEU with one of its tokenizers, which may need another package or a download.

    Raises:
        ValueError: when sacrebleu has no such tokenizer, or its package or file is missing.
    """
    from sacrebleu.metrics import BLEU

    if tokenize not in BLEU.TOKENIZERS:
        raise ValueError(f"sacrebleu has no tokenizer `{tokenize}`; it has {', '.join(sorted(BLEU.TOKENIZERS))}")
    try:
        return BLEU(tokenize=tokenize)
    except Exception as error:  # RuntimeError, ImportError, or whatever its download raises
        reason = " ".join(str(error).split()) or type(error).__name__
        extra = {"ja-mecab": "sacrebleu[ja]", "ko-mecab": "sacrebleu[ko]"}.get(tokenize, "sentencepiece")
        raise ValueError(
            f"sacrebleu's tokenizer `{tokenize}` cannot be loaded ({reason}); it needs `pip install '{extra}'`"
            + ("" if "mecab" in tokenize else ", and network access once, to download its model")
        ) from error


def corpus_scores(
    hypotheses: Sequence[str], references: Sequence[str], tokenize: str, bootstrap_samples: int
) -> dict[str, tuple[Any, str]]:
    """Computes sacrebleu's BLEU and chrF with bootstrap; returns each with its signature.

    Raises:
        ValueError: see `bleu_with`.
    """
    scores = {}
    for name, metric in metrics_of(tokenize).items():
        score = metric.corpus_score(list(hypotheses), [list(references)], n_bootstrap=bootstrap_samples)
        scores[name] = (score, str(metric.get_signature()))
    return scores


def metrics_of(tokenize: str) -> dict[str, Any]:
    """Creates sacrebleu's BLEU and chrF, by the metrics of score names.

    Raises:
        ValueError: see `bleu_with`.
    """
    from sacrebleu.metrics import CHRF

    class PlainCHRF(CHRF):  # type: ignore[misc]  # sacrebleu's own types are partial
        """chrF in Python floats: sacrebleu 2.6 cannot average numpy scores together with a plain 0.0."""

        def _compute_score_from_stats(self, stats: Any) -> Any:
            score = super()._compute_score_from_stats(stats)
            score.score = float(score.score)
            return score

    return {"bleu": bleu_with(tokenize), "chrf": PlainCHRF()}


def corpus_statistics(
    hypotheses: Sequence[str], references: Sequence[str], tokenize: str
) -> dict[str, list[tuple[float, ...]]]:
    """Computes sacrebleu's sufficient statistics of each pair, by metric; their sums give the score of the corpus.

    Of BLEU: lengths of translation and reference, then n-grams in common and n-grams of the translation, for 1 to 4
    words. Of chrF: n-grams of the translation, of the reference, and in common, for 1 to 6 characters.

    Raises:
        ValueError: see `bleu_with`.
    """
    return {
        name: [
            tuple(map(float, row)) for row in metric._extract_corpus_statistics(list(hypotheses), [list(references)])
        ]
        for name, metric in metrics_of(tokenize).items()
    }


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
    bleu_with(section.tokenize)  # before translating, because its package may be missing
    shots, pairs = read_pairs(section)
    room = reader.context_length - section.max_new_tokens
    if room < 2:
        raise ValueError(
            f"translation set `{section.name}`: max_new_tokens {section.max_new_tokens} leaves no room for a prompt in "
            f"model.context_length {reader.context_length}; lower it"
        )
    chat = section.template == "chat"
    stops = Stops(vocab, [], ChatTemplate(vocab).end_ids) if chat else Stops(vocab, ["\n"])
    fitted = [fit_prompt(section, shots, pair.source, vocab, room) for pair in pairs]
    began = time.perf_counter()
    texts = complete(reader, stops, [ids for ids, _ in fitted], section.max_new_tokens, report)
    took = shared_seconds(time.perf_counter() - began, [1 + len(text) for text in texts])
    hypotheses = [text.strip() for text in texts]
    references, sources = [pair.target for pair in pairs], [pair.source for pair in pairs]
    shown = sum(count for _, count in fitted) / len(fitted)
    fit = f"{shown:.1f} of {section.shots} shots fit on average" if section.shots else "no examples in the prompt"
    note = f"{fit}; greedy, at most {section.max_new_tokens} new tokens"
    if cut := sum(
        not count and is_cut(section, pair, vocab, room) for pair, (_, count) in zip(pairs, fitted, strict=True)
    ):
        note += f"; {cut} of {len(pairs)} sources are longer than the context and lost their start"
    settings = {
        "normalize": section.normalize,
        "shots": section.shots,
        "new tokens": section.max_new_tokens,
        "labels": "chat template" if chat else f"{section.source_label}, {section.target_label}",
        "examples": set_key((pair.source, pair.target) for pair in shots)[:8],
    }
    passages = [(pair.source, pair.target) for pair in pairs]
    scored = partial(_scored, section, bootstrap_samples=bootstrap_samples)
    stamp = {"note": note, "settings": settings, "set": set_key(passages)}
    results = scored("", hypotheses, references, stamp)
    copied = {**stamp, "note": "the source itself as its translation"}
    copied["settings"] = {"normalize": section.normalize}
    results += scored("copy_", sources, references, copied)
    masks = split(touched, f"translation/{section.name}", passages)
    for part, mask in masks.items():
        chosen = [number for number, inside in enumerate(mask) if inside]
        ours, theirs = ([texts[number] for number in chosen] for texts in (hypotheses, references))
        own = {**stamp, "set": set_key(passages[number] for number in chosen)}
        results += labelled(scored("", ours, theirs, own), part)
    samples = [
        Sample("translation", f"{section.name}, pair {index + 1}", pair.source, text, "greedy", pair.target)
        for index, (pair, text) in enumerate(zip(pairs[:SHOWN_SAMPLES], hypotheses, strict=False))
    ]
    statistics = corpus_statistics(hypotheses, references, section.tokenize)
    items = [
        Item(
            id=str(index + 1),
            hash=hash_of(pair.source, pair.target),
            asked=beginning(pair.source),
            reference=beginning(pair.target),
            answer=beginning(hypotheses[index]),
            bytes=len(hypotheses[index].encode("utf-8", "replace")),
            seconds=took[index],
            statistics={metric: rows[index] for metric, rows in statistics.items()},
            tags=tuple(part for part, mask in masks.items() if mask[index]),
            notes={"shots": str(fitted[index][1])},
        )
        for index, pair in enumerate(pairs)
    ]
    return Scored(results, samples, items)


def _scored(
    section: TranslationSet,
    prefix: str,
    outputs: Sequence[str],
    references: Sequence[str],
    stamp: dict[str, Any],
    *,
    bootstrap_samples: int,
) -> list[Result]:
    """Scores pairs by BLEU, and by chrF except for copies; `stamp`: fields of `Result` that describe the set."""
    scores = corpus_scores(outputs, references, section.tokenize, bootstrap_samples)
    # One pair, or pairs with equal scores, give no information on the spread.
    spread = {name: len(outputs) > 1 and score._ci > 0 for name, (score, _) in scores.items()}
    return [
        Result(
            name=f"translation/{section.name}/{prefix}{name}",
            value=min(100.0, score.score),  # rounding can bring 100.00000000000004
            low=max(0.0, float(score._mean - score._ci)) if spread[name] else None,
            high=min(100.0, float(score._mean + score._ci)) if spread[name] else None,
            n=len(outputs),
            unit={"bleu": "BLEU", "chrf": "chrF2"}[name],
            higher_is_better=True,
            interval=f"sacrebleu's bootstrap over {len(outputs)} pairs"
            if spread[name]
            else no_interval(len(outputs), "pair"),
            signature=signature,
            **stamp,
        )
        for name, (score, signature) in scores.items()
        if not prefix or name == "bleu"
    ]

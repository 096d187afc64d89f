"""BLEU and chrF of few-shot translation, by sacrebleu with its signature (Post 2018, arXiv:1804.08771)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from configs.evaluation_sections import TranslationSet
from data_prep.evaluation_sets import Pair as Pair
from data_prep.evaluation_sets import read_all_pairs
from data_prep.vocab import Vocab
from eval.contamination import labelled, split
from eval.generation import complete
from eval.results import Result, Sample
from eval.scoring import Report
from pretrain.model import Transformer

if TYPE_CHECKING:
    from data_prep.decontaminate import Touched

SHOWN_SAMPLES = 3


def read_pairs(section: TranslationSet) -> tuple[list[Pair], list[Pair]]:
    """The set's solved examples and its scored pairs.

    Raises:
        ValueError: a missing file, a missing field, or nothing left to score.
    """
    pairs = read_all_pairs(section)
    scored = pairs[section.shots :][: section.max_items]
    if not scored:
        raise ValueError(
            f"translation set `{section.name}`: {section.path} has {len(pairs)} pairs, none left after "
            f"{section.shots} shots"
        )
    return pairs[: section.shots], scored


def build_prompt(section: TranslationSet, shots: Sequence[Pair], source: str) -> str:
    """Solved examples, then the sentence to translate; the translation ends at the line's end."""
    solved = "".join(
        f"{section.source_label}: {pair.source}\n{section.target_label}: {pair.target}\n\n" for pair in shots
    )
    return f"{solved}{section.source_label}: {source}\n{section.target_label}:"


def fit_prompt(
    section: TranslationSet, shots: Sequence[Pair], source: str, vocab: Vocab, room: int
) -> tuple[list[int], int]:
    """Prompt ids, with as many of the last shots as fit in `room` tokens, and how many those are."""
    for dropped in range(len(shots) + 1):
        ids = vocab.encode(build_prompt(section, shots[dropped:], source))
        if len(ids) <= room:
            return ids, len(shots) - dropped
    return ids[-room:], 0


def corpus_scores(
    hypotheses: Sequence[str], references: Sequence[str], tokenize: str, bootstrap_samples: int
) -> dict[str, tuple[Any, str]]:
    """sacrebleu's BLEU and chrF with bootstrap, each with its signature.

    Raises:
        ValueError: a tokenizer that sacrebleu does not have.
    """
    from sacrebleu.metrics import BLEU, CHRF

    class PlainCHRF(CHRF):  # type: ignore[misc]  # sacrebleu's own types are partial
        """chrF in Python floats: sacrebleu 2.6 cannot average scores of which one is a plain 0.0."""

        def _compute_score_from_stats(self, stats: Any) -> Any:
            score = super()._compute_score_from_stats(stats)
            score.score = float(score.score)
            return score

    if tokenize not in BLEU.TOKENIZERS:
        raise ValueError(f"sacrebleu has no tokenizer `{tokenize}`; it has {', '.join(sorted(BLEU.TOKENIZERS))}")
    scores = {}
    for name, metric in (("bleu", BLEU(tokenize=tokenize)), ("chrf", PlainCHRF())):
        score = metric.corpus_score(list(hypotheses), [list(references)], n_bootstrap=bootstrap_samples)
        scores[name] = (score, str(metric.get_signature()))
    return scores


def translation_results(
    section: TranslationSet,
    model: Transformer,
    vocab: Vocab,
    batch_size: int,
    bootstrap_samples: int,
    report: Report | None = None,
    touched: Touched | None = None,
) -> tuple[list[Result], list[Sample]]:
    """Translates the set greedily and scores it, beside copying the source; also returns a few translations to show.

    Pairs that the training documents touch, and the others, are scored by themselves too, where `touched` knows them.
    """
    shots, pairs = read_pairs(section)
    room = model.config.context_length - section.max_new_tokens
    if room < 2:
        raise ValueError(
            f"translation set `{section.name}`: max_new_tokens {section.max_new_tokens} leaves no room for a prompt in "
            f"model.context_length {model.config.context_length}; lower it"
        )
    fitted = [fit_prompt(section, shots, pair.source, vocab, room) for pair in pairs]
    texts = complete(model, vocab, [ids for ids, _ in fitted], section.max_new_tokens, ["\n"], batch_size, report)
    hypotheses = [text.strip() for text in texts]
    references, sources = [pair.target for pair in pairs], [pair.source for pair in pairs]
    shown = sum(count for _, count in fitted) / len(fitted)
    note = f"{shown:.1f} of {section.shots} shots fit on average; greedy, at most {section.max_new_tokens} new tokens"
    results = _scored(section, "", hypotheses, references, bootstrap_samples, note)
    results += _scored(section, "copy_", sources, references, bootstrap_samples, "the source itself as its translation")
    passages = [(pair.source, pair.target) for pair in pairs]
    for part, mask in split(touched, f"translation/{section.name}", passages).items():
        chosen = [number for number, inside in enumerate(mask) if inside]
        ours, theirs = ([texts[number] for number in chosen] for texts in (hypotheses, references))
        results += labelled(_scored(section, "", ours, theirs, bootstrap_samples, note), part)
    samples = [
        Sample("translation", f"{section.name}, pair {index + 1}", pair.source, text, "greedy", pair.target)
        for index, (pair, text) in enumerate(zip(pairs[:SHOWN_SAMPLES], hypotheses, strict=False))
    ]
    return results, samples


def _scored(
    section: TranslationSet,
    prefix: str,
    outputs: Sequence[str],
    references: Sequence[str],
    bootstrap_samples: int,
    note: str,
) -> list[Result]:
    """BLEU, and chrF but for copies, of some pairs."""
    scores = corpus_scores(outputs, references, section.tokenize, bootstrap_samples)
    return [
        Result(
            name=f"translation/{section.name}/{prefix}{name}",
            value=score.score,
            low=max(0.0, float(score._mean - score._ci)),
            high=min(100.0, float(score._mean + score._ci)),
            n=len(outputs),
            unit={"bleu": "BLEU", "chrf": "chrF2"}[name],
            higher_is_better=True,
            interval=f"sacrebleu's bootstrap over {len(outputs)} pairs",
            signature=signature,
            note=note,
        )
        for name, (score, signature) in scores.items()
        if not prefix or name == "bleu"
    ]

"""Scores texts by BLEU and chrF of sacrebleu, with its signature (Post 2018, arXiv:1804.08771)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval.text_metrics.sentences import unspaced_share

BLEU_AND_CHRF = ("bleu", "chrf")
# Tokenizers of sacrebleu that find words by blanks and punctuation alone.
_BY_BLANKS = ("13a", "intl")
_MOST_UNSPACED = 0.5  # share of letters


def check_language(tokenize: str, references: Sequence[Sequence[str]], what: str) -> None:
    """Refuses references whose words are not separated by blanks, with a tokenizer that takes each clause for a word.

    Raises:
        ValueError: naming the setting; `what` names the set.
    """
    share = unspaced_share(text for own in references for text in own) if tokenize in _BY_BLANKS else 0.0
    if share > _MOST_UNSPACED:
        raise ValueError(
            f"{what}: {share:.0%} of the letters of the references are of a script without blanks between words, and "
            f"BLEU's tokenizer `{tokenize}` takes what stands between two marks for one word; set `tokenize: zh` for "
            "Chinese, `ja-mecab` for Japanese, or `char`"
        )


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
    outputs: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenize: str,
    bootstrap_samples: int,
    names: Sequence[str] = BLEU_AND_CHRF,
) -> dict[str, tuple[Any, str]]:
    """Computes sacrebleu's BLEU and chrF with bootstrap; returns each with its signature.

    Args:
        outputs: n texts.
        references: of each text, at least one.
        tokenize: tokenizer of BLEU.
        bootstrap_samples: resamples of the interval.
        names: of the metrics.

    Raises:
        ValueError: see `bleu_with`.
    """
    scores = {}
    for name, metric in metrics_of(tokenize, names).items():
        score = metric.corpus_score(list(outputs), _streams(references), n_bootstrap=bootstrap_samples)
        scores[name] = (score, str(metric.get_signature()))
    return scores


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """References as sacrebleu takes them: the first of every text, the second or None, and so on."""
    most = max(map(len, references))
    return [[own[place] if place < len(own) else None for own in references] for place in range(most)]


def metrics_of(tokenize: str, names: Sequence[str] = BLEU_AND_CHRF) -> dict[str, Any]:
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

    return {name: bleu_with(tokenize) if name == "bleu" else PlainCHRF() for name in names}


def corpus_statistics(
    outputs: Sequence[str], references: Sequence[Sequence[str]], tokenize: str, names: Sequence[str] = BLEU_AND_CHRF
) -> dict[str, list[tuple[float, ...]]]:
    """Computes sacrebleu's sufficient statistics of each text, by metric; their sums give the score of the corpus.

    Of BLEU: lengths of text and reference, then n-grams in common and n-grams of the text, for 1 to 4 words. Of chrF:
    n-grams of the text, of the reference, and in common, for 1 to 6 characters. See `corpus_scores`.

    Raises:
        ValueError: see `bleu_with`.
    """
    return {
        name: [tuple(map(float, row)) for row in metric._extract_corpus_statistics(list(outputs), _streams(references))]
        for name, metric in metrics_of(tokenize, names).items()
    }

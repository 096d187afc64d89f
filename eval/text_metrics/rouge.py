"""Scores texts by ROUGE (Lin 2004) with the library rouge-score, and gives the scores a signature."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

from configs.common.versions import installed
from eval.statistics import SEED
from eval.text_metrics.sentences import UNSPACED, split_text

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
UNITS = {"rouge1": "ROUGE-1 F1", "rouge2": "ROUGE-2 F1", "rougeL": "ROUGE-L F1", "rougeLsum": "ROUGE-Lsum F1"}

RougeTokens = Literal["words", "characters"]
# Scripts without blanks between words: each of their characters is a token.
_CHARACTERS = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
_MOST_LOST = 0.5  # share of letters that a tokenizer may drop before it is the wrong one


class Characters:
    """Tokenizes text whose words are not separated: each Chinese, Japanese or Thai character is a token.

    Words of other scripts and numbers are one token each, in small letters. Punctuation is left out, as rouge-score's
    own tokenizer does.
    """

    def tokenize(self, text: str) -> list[str]:
        """Returns the tokens of a text."""
        return _CHARACTERS.findall(text.lower())


class Rouge:
    """ROUGE with one tokenizer.

    Args:
        tokens: `words`: rouge-score's own tokenizer, which keeps the letters a to z and digits. `characters`: see
            `Characters`.
        stem: apply Porter's stemmer to words of more than three letters.
    """

    def __init__(self, tokens: RougeTokens = "words", stem: bool = False) -> None:
        assert tokens == "words" or not stem
        self.tokens, self.stem = tokens, stem

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of rouge-score, or `Characters`."""
        if self.tokens == "characters":
            return Characters()
        from rouge_score.tokenizers import DefaultTokenizer

        return DefaultTokenizer(self.stem)

    def signature(self, references: int, bootstrap_samples: int | None = None) -> str:
        """Names what decides the scores, in the form of sacrebleu's signatures.

        Args:
            references: the largest number of references of an item. The best one of each item counts.
            bootstrap_samples: of the interval; None: there is none.
        """
        parts = {
            "nrefs": references,
            "case": "lc",
            "tok": self.tokens,
            "stem": "porter" if self.stem else "no",
            "agg": "mean",
            "rouge_score": installed("rouge-score"),
            **({"nltk": installed("nltk")} if self.stem else {}),
            **({"bs": bootstrap_samples, "seed": SEED} if bootstrap_samples else {}),
        }
        return "|".join(f"{key}:{value}" for key, value in parts.items())

    def scores(
        self, outputs: Sequence[str], references: Sequence[Sequence[str]], kinds: Sequence[str] = ROUGE
    ) -> dict[str, list[Any]]:
        """Scores each output against its references; returns precision, recall and F1 of each, by kind of ROUGE.

        Of several references the one with the highest F1 counts, for each kind. Sentences for ROUGE-Lsum are lines,
        and those of `split_text` in them.

        Args:
            outputs: n texts; an empty one scores 0.
            references: of each output, at least one.
            kinds: such as `rouge1`, `rouge2`, `rougeL`, `rougeLsum`.

        Returns:
            For each kind n tuples of rouge-score, with `precision`, `recall` and `fmeasure` from 0 to 1.
        """
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(list(kinds), tokenizer=self.tokenizer)
        summary = "rougeLsum" in kinds
        found: dict[str, list[Any]] = {kind: [] for kind in kinds}
        for output, targets in zip(outputs, references, strict=True):
            texts = [_by_lines(text) if summary else text for text in (output, *targets)]
            for kind, score in scorer.score_multi(texts[1:], texts[0]).items():
                found[kind].append(score)
        return found

    def check(self, texts: Sequence[str], what: str) -> None:
        """Refuses references that the tokenizer cannot read, because they are in another language.

        Raises:
            ValueError: when most of their letters are lost, or one has no token at all.
        """
        letters = sum(sum(map(str.isalnum, text)) for text in texts)
        kept = sum(len(token) for text in texts for token in self._plain.tokenize(text))
        if letters and kept < (1 - _MOST_LOST) * letters:
            raise ValueError(
                f"{what}: ROUGE's tokenizer `{self.tokens}` drops {1 - kept / letters:.0%} of the letters of the "
                "references, because it knows no other letters than a to z; set `rouge: {tokens: characters}`"
            )
        for number, text in enumerate(texts, start=1):
            if not self._plain.tokenize(text):
                raise ValueError(
                    f"{what}: reference {number} has no word for ROUGE's tokenizer `{self.tokens}`: "
                    f"{text.strip()[:40]!r}; correct it or take it out"
                )

    @property
    def _plain(self) -> Any:
        return self.tokenizer if not self.stem else Rouge(self.tokens).tokenizer


def _by_lines(text: str) -> str:
    """Writes a sentence a line, which rouge-score's ROUGE-Lsum asks for; no other kind sees a difference.

    A line break of the text ends a sentence too, as for rouge-score itself.
    """
    return "\n".join(sentence for line in text.splitlines() for sentence in split_text(line))

"""Defines the rule sets of `data.quality.rules` with their published thresholds; null disables a threshold."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from configs.schema.section import CodeText, Section

Count = Annotated[int | None, Field(ge=0)]
Mean = Annotated[float | None, Field(ge=0)]
Share = Annotated[float | None, Field(ge=0, le=1)]


def _as_number(key: Any) -> Any:
    """JSON, which a resolved recipe goes through, has strings alone as keys."""
    return int(key) if isinstance(key, str) and key.isdecimal() else key


NGrams = dict[
    Annotated[int, Field(ge=1, le=100), BeforeValidator(_as_number)],
    Annotated[float, Field(ge=0, le=1)],
]


class RuleSet(Section):
    """Base class of all rule sets."""

    languages: list[str] = Field(
        [], description="Apply to documents in these languages only (ISO 639-1); others pass. Empty: all languages."
    )


class C4Rules(RuleSet):
    """Raffel et al., arXiv:1910.10683, section 2.2, and its code (c4_utils.py). Cuts lines, then drops documents."""

    rule: Literal["c4"]
    max_word_characters: int = Field(1000, ge=1, description="Remove lines with a longer word.")
    citations: bool = Field(True, description="Remove [1], [edit] and [citation needed] from lines.")
    terminal_punctuation: bool = Field(True, description="Remove lines that do not end with . ! ? or a quote.")
    min_line_words: int = Field(3, ge=0, description="Remove lines with fewer words.")
    lorem_ipsum: bool = Field(True, description="Drop documents with `lorem ipsum`.")
    javascript: bool = Field(True, description="Remove lines with `javascript`.")
    curly_bracket: bool = Field(True, description="Drop documents with `{`.")
    policy: bool = Field(True, description="Remove lines about terms of use, privacy policies and cookies.")
    min_sentences: int = Field(5, ge=0, description="Drop documents with fewer sentences.")


class GopherQualityRules(RuleSet):
    """Rae et al., arXiv:2112.11446, appendix A.1.1 (quality filtering)."""

    rule: Literal["gopher_quality"]
    min_words: Count = Field(50, description="Minimum number of words. Words of punctuation alone are not counted.")
    max_words: Count = Field(100_000, description="Maximum number of words.")
    min_mean_word_characters: Mean = Field(3, description="Minimum mean word length, in characters.")
    max_mean_word_characters: Mean = Field(10, description="Maximum mean word length, in characters.")
    max_symbols_per_word: Mean = Field(0.1, description="Maximum `#` per word, and maximum ellipses per word.")
    max_bullet_lines: Share = Field(0.9, description="Largest share of lines that start with a bullet.")
    max_ellipsis_lines: Share = Field(0.3, description="Largest share of lines that end with an ellipsis.")
    min_alphabetic_words: Share = Field(0.8, description="Smallest share of words with a letter.")
    min_stop_words: Count = Field(2, description="Minimum number of different `stop_words` in the document.")
    stop_words: list[str] = Field(
        ["the", "be", "to", "of", "and", "that", "have", "with"], description="Frequent words of the language."
    )


class _Repetition(RuleSet):
    max_dup_paragraphs: Share = Field(0.3, description="Largest share of paragraphs that repeat an earlier one.")
    max_dup_paragraph_characters: Share = Field(0.2, description="Largest share of characters in such paragraphs.")
    max_dup_lines: Share = Field(0.3, description="Largest share of lines that repeat an earlier one.")
    max_dup_line_characters: Share = Field(0.2, description="Largest share of characters in such lines.")


class GopherRepetitionRules(_Repetition):
    """Rae et al., arXiv:2112.11446, table A1."""

    rule: Literal["gopher_repetition"]
    max_top_ngram: NGrams = Field(
        {2: 0.2, 3: 0.18, 4: 0.16}, description="Largest share of characters in the most frequent n-gram of words."
    )
    max_dup_ngram: NGrams = Field(
        {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1},
        description="Largest share of characters in word n-grams that repeat an earlier one.",
    )


class FineWebRules(RuleSet):
    """Penedo et al., arXiv:2406.17557, section 3.4. Empty lines do not count."""

    rule: Literal["fineweb"]
    min_line_punct: Share = Field(0.12, description="Smallest share of lines that end with a sentence end mark.")
    max_short_lines: Share = Field(0.67, description="Largest share of short lines.")
    short_line_characters: int = Field(30, ge=0, description="Longest line that counts as short.")
    max_char_dup: Share = Field(0.01, description="Largest share of characters in lines that repeat an earlier one.")
    max_line_ends_per_word: Mean = Field(0.3, description="Maximum line ends per word. A text with more is a list.")


class MassiveTextZhRules(_Repetition):
    """Gopher's rules (MassiveText) adapted to Chinese, counted in characters other than blanks.

    Document length, line length and share of Chinese characters: ChineseWebText (Chen et al., arXiv:2311.01149, section
    2.2). Lines and paragraphs: Gopher's thresholds. Ends of lines: FineWeb's threshold. Our choice: two characters
    count as one of Gopher's words, so n doubles and shares per word halve.
    """

    rule: Literal["massivetext_zh"]
    min_characters: Count = Field(200, description="Minimum number of characters (ChineseWebText).")
    max_characters: Count = Field(200_000, description="Maximum number of characters (Gopher's 100,000 words).")
    min_mean_line_characters: Mean = Field(10, description="Minimum mean line length, in characters (ChineseWebText).")
    min_han: Share = Field(0.3, description="Smallest share of Chinese characters (ChineseWebText).")
    max_symbols: Share = Field(
        0.05, description="Maximum `#` per character, and maximum ellipses per character (Gopher's 0.1 per word)."
    )
    max_bullet_lines: Share = Field(0.9, description="Largest share of lines that start with a bullet (Gopher).")
    max_ellipsis_lines: Share = Field(0.3, description="Largest share of lines that end with an ellipsis (Gopher).")
    min_line_punct: Share = Field(
        0.12, description="Smallest share of lines that end with a mark such as 。！？：；… and optional quotes."
    )
    max_top_ngram: NGrams = Field(
        {4: 0.2, 6: 0.18, 8: 0.16}, description="Largest share of Chinese characters in the most frequent n-gram."
    )
    max_dup_ngram: NGrams = Field(
        {10: 0.15, 12: 0.14, 14: 0.13, 16: 0.12, 18: 0.11, 20: 0.1},
        description="Largest share of Chinese characters in n-grams that repeat an earlier one (ChineseWebText: 13: "
        "0.5).",
    )


class CustomRules(RuleSet):
    """A custom rule (docs/custom-code.md). Its code runs only if `--trust DIR` names its directory."""

    rule: Literal["custom"]
    code: CodeText = Field(
        description="`FILE.py:NAME`, a function that takes a text's `TextFacts` and returns a `Drop` or the text to "
        "keep."
    )
    options: dict[str, Any] = Field({}, description="Further keyword arguments for it.")


Rule = Annotated[
    C4Rules | GopherQualityRules | GopherRepetitionRules | FineWebRules | MassiveTextZhRules | CustomRules,
    Field(discriminator="rule"),
]

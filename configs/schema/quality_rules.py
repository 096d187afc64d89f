"""Rule sets of `data.quality.rules`, each with the thresholds that its publication states; null switches one off."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from configs.schema.section import CodeText, Section

Count = Annotated[int | None, Field(ge=0)]
Mean = Annotated[float | None, Field(ge=0)]
Share = Annotated[float | None, Field(ge=0, le=1)]
NGrams = dict[Annotated[int, Field(ge=1, le=100)], Annotated[float, Field(ge=0, le=1)]]


class RuleSet(Section):
    """What all rule sets have."""

    languages: list[str] = Field(
        [], description="Apply to documents in these languages only (ISO 639-1); the others pass. Empty: all."
    )


class C4Rules(RuleSet):
    """Raffel et al., arXiv:1910.10683, section 2.2, and its code (c4_utils.py). Cuts lines, then drops documents."""

    rule: Literal["c4"]
    max_word_characters: int = Field(1000, ge=1, description="Take out lines with a longer word.")
    citations: bool = Field(True, description="Take [1], [edit] and [citation needed] out of lines.")
    terminal_punctuation: bool = Field(True, description="Take out lines that do not end with . ! ? or a quote.")
    min_line_words: int = Field(3, ge=0, description="Take out lines of fewer words.")
    lorem_ipsum: bool = Field(True, description="Drop documents with `lorem ipsum`.")
    javascript: bool = Field(True, description="Take out lines with `javascript`.")
    curly_bracket: bool = Field(True, description="Drop documents with {.")
    policy: bool = Field(True, description="Take out lines about terms of use, privacy policies and cookies.")
    min_sentences: int = Field(5, ge=0, description="Drop documents of fewer sentences.")


class GopherQualityRules(RuleSet):
    """Rae et al., arXiv:2112.11446, appendix A.1.1 (quality filtering)."""

    rule: Literal["gopher_quality"]
    min_words: Count = Field(50, description="Fewest words; those that are all punctuation do not count.")
    max_words: Count = Field(100_000, description="Most words.")
    min_mean_word_characters: Mean = Field(3, description="Smallest mean length of words.")
    max_mean_word_characters: Mean = Field(10, description="Largest mean length of words.")
    max_symbols_per_word: Mean = Field(0.1, description="Most # per word, and most ellipses per word.")
    max_bullet_lines: Share = Field(0.9, description="Largest share of lines that start with a bullet.")
    max_ellipsis_lines: Share = Field(0.3, description="Largest share of lines that end with an ellipsis.")
    min_alphabetic_words: Share = Field(0.8, description="Smallest share of words with a letter.")
    min_stop_words: Count = Field(2, description="How many of `stop_words` must be there.")
    stop_words: list[str] = Field(
        ["the", "be", "to", "of", "and", "that", "have", "with"], description="Frequent words of the language."
    )


class _Repetition(RuleSet):
    max_dup_paragraphs: Share = Field(0.3, description="Largest share of paragraphs that came before.")
    max_dup_paragraph_characters: Share = Field(0.2, description="Largest share of characters in them.")
    max_dup_lines: Share = Field(0.3, description="Largest share of lines that came before.")
    max_dup_line_characters: Share = Field(0.2, description="Largest share of characters in them.")


class GopherRepetitionRules(_Repetition):
    """Rae et al., arXiv:2112.11446, table A1."""

    rule: Literal["gopher_repetition"]
    max_top_ngram: NGrams = Field(
        {2: 0.2, 3: 0.18, 4: 0.16}, description="Largest share of characters in the most frequent n words in a row."
    )
    max_dup_ngram: NGrams = Field(
        {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1},
        description="Largest share of characters in n words in a row that came before.",
    )


class FineWebRules(RuleSet):
    """Penedo et al., arXiv:2406.17557, section 3.4. Empty lines do not count."""

    rule: Literal["fineweb"]
    min_line_punct: Share = Field(0.12, description="Smallest share of lines that end with a sentence's end mark.")
    max_short_lines: Share = Field(0.67, description="Largest share of short lines.")
    short_line_characters: int = Field(30, ge=0, description="Longest line that counts as short.")
    max_char_dup: Share = Field(0.01, description="Largest share of characters in lines that came before.")
    max_line_ends_per_word: Mean = Field(0.3, description="Most line ends per word: more is a list.")


class MassiveTextZhRules(_Repetition):
    """Gopher's rules (MassiveText) carried over to Chinese, counted in characters other than blanks.

    Length, length of lines and share of Chinese characters: ChineseWebText (Chen et al., arXiv:2311.01149, section
    2.2). Lines and paragraphs: Gopher's thresholds. Ends of lines: FineWeb's threshold. Ours: two characters stand for
    one of Gopher's words, so n doubles and shares per word halve.
    """

    rule: Literal["massivetext_zh"]
    min_characters: Count = Field(200, description="Fewest characters (ChineseWebText).")
    max_characters: Count = Field(200_000, description="Most characters (Gopher's 100,000 words).")
    min_mean_line_characters: Mean = Field(10, description="Smallest mean length of lines (ChineseWebText).")
    min_han: Share = Field(0.3, description="Smallest share of Chinese characters (ChineseWebText).")
    max_symbols: Share = Field(0.05, description="Most # per character, and most ellipses (Gopher's 0.1 per word).")
    max_bullet_lines: Share = Field(0.9, description="Largest share of lines that start with a bullet (Gopher).")
    max_ellipsis_lines: Share = Field(0.3, description="Largest share of lines that end with an ellipsis (Gopher).")
    min_line_punct: Share = Field(
        0.12, description="Smallest share of lines that end with a mark such as 。！？：；…, quotes after it allowed."
    )
    max_top_ngram: NGrams = Field(
        {4: 0.2, 6: 0.18, 8: 0.16}, description="Largest share of Chinese characters in the most frequent n in a row."
    )
    max_dup_ngram: NGrams = Field(
        {10: 0.15, 12: 0.14, 14: 0.13, 16: 0.12, 18: 0.11, 20: 0.1},
        description="Largest share of Chinese characters in n in a row that came before (ChineseWebText: 13: 0.5).",
    )


class CustomRules(RuleSet):
    """A rule of your own (docs/custom-code.md). Its code runs when `--trust DIR` names its directory."""

    rule: Literal["custom"]
    code: CodeText = Field(
        description="`FILE.py:NAME`, a function from a text's `TextFacts` to a `Drop`, or to the text that is left."
    )
    options: dict[str, Any] = Field({}, description="Keyword arguments that it is given beside the facts.")


Rule = Annotated[
    C4Rules | GopherQualityRules | GopherRepetitionRules | FineWebRules | MassiveTextZhRules | CustomRules,
    Field(discriminator="rule"),
]

"""Rule sets of `data.quality.rules`, each with the thresholds that its publication states; null switches one off."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from configs.section import Section

Count = Annotated[int | None, Field(ge=0)]
Mean = Annotated[float | None, Field(ge=0)]
Share = Annotated[float | None, Field(ge=0, le=1)]


class C4Rules(Section):
    """Raffel et al., arXiv:1910.10683, section 2.2, and its code (c4_utils.py). Takes out lines, then judges."""

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


class GopherQualityRules(Section):
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


class GopherRepetitionRules(Section):
    """Rae et al., arXiv:2112.11446, table A1. Shares of the elements, or of the document's characters."""

    rule: Literal["gopher_repetition"]
    max_dup_paragraphs: Share = Field(0.3, description="Paragraphs that came before.")
    max_dup_paragraph_characters: Share = Field(0.2, description="Characters in them.")
    max_dup_lines: Share = Field(0.3, description="Lines that came before.")
    max_dup_line_characters: Share = Field(0.2, description="Characters in them.")
    max_top_ngram: dict[int, float] = Field(
        {2: 0.2, 3: 0.18, 4: 0.16}, description="Characters in the most frequent n-gram of words, by n."
    )
    max_dup_ngram: dict[int, float] = Field(
        {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1},
        description="Characters in n-grams of words that came before, by n.",
    )


class FineWebRules(Section):
    """Penedo et al., arXiv:2406.17557, section 3.4. Empty lines do not count."""

    rule: Literal["fineweb"]
    min_line_punct: Share = Field(0.12, description="Smallest share of lines that end with a sentence's end mark.")
    max_short_lines: Share = Field(0.67, description="Largest share of short lines.")
    short_line_characters: int = Field(30, ge=0, description="Longest line that counts as short.")
    max_char_dup: Share = Field(0.01, description="Largest share of characters in lines that came before.")
    max_line_ends_per_word: Mean = Field(0.3, description="Most line ends per word: more is a list.")


class MassiveTextZhRules(Section):
    """Gopher's rules carried over to Chinese, counted in characters without blanks."""

    rule: Literal["massivetext_zh"]
    min_characters: Count = Field(100, description="Fewest characters.")
    max_characters: Count = Field(200_000, description="Most characters.")
    min_han: Share = Field(0.5, description="Smallest share of Chinese characters among letters and digits.")
    max_symbols: Share = Field(0.1, description="Most # and most ellipses per Chinese character.")


Rule = Annotated[
    C4Rules | GopherQualityRules | GopherRepetitionRules | FineWebRules | MassiveTextZhRules,
    Field(discriminator="rule"),
]

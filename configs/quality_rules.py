"""Rule sets of `data.quality.rules`, each with the thresholds that its publication states."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from configs.section import Section


class C4Rules(Section):
    """Raffel et al., arXiv:1910.10683, section 2.2. Takes out lines, then judges what is left."""

    rule: Literal["c4"]
    terminal_punctuation: bool = Field(True, description="Take out lines that do not end with . ! ? or a quote.")
    min_line_words: int = Field(3, ge=0, description="Take out lines of fewer words.")
    min_sentences: int = Field(5, ge=0, description="Drop documents of fewer sentences.")


class GopherQualityRules(Section):
    """Rae et al., arXiv:2112.11446, table A1."""

    rule: Literal["gopher_quality"]
    min_words: int = Field(50, ge=0, description="Fewest words.")
    max_words: int = Field(100_000, ge=1, description="Most words.")


class GopherRepetitionRules(Section):
    """Rae et al., arXiv:2112.11446, table A1: repetitions within a document."""

    rule: Literal["gopher_repetition"]


class FineWebRules(Section):
    """Penedo et al., arXiv:2406.17557, section 3.6."""

    rule: Literal["fineweb"]


class MassiveTextZhRules(Section):
    """Gopher's rules carried over to Chinese, counted in characters."""

    rule: Literal["massivetext_zh"]


Rule = Annotated[
    C4Rules | GopherQualityRules | GopherRepetitionRules | FineWebRules | MassiveTextZhRules,
    Field(discriminator="rule"),
]

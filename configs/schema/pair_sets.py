"""Defines the sections of evaluation sets whose items are pairs of a source text and a target text."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from configs.schema.section import PatternText, Section, SetName, UnicodeText


class PairSet(Section):
    """Pairs of a source and a target. `path` is a .jsonl file (also .gz, .zst) with one object per pair."""

    kind: ClassVar[str] = "pair"  # how scores and messages call such a set

    name: SetName
    path: PatternText = Field(description="The file with the pairs.")
    source_field: str = Field("source", description="Field with the source text.")
    target_field: str = Field("target", description="Field with the target text.")
    normalize: Literal["none", "spaces"] = Field(
        "none",
        description="none: take the texts as they stand, as published scores do. spaces: write each run of white "
        "space as one blank, and none at the ends.",
    )
    source_label: UnicodeText = Field("Source", description="Written before a source in the prompt.")
    target_label: UnicodeText = Field("Target", description="Written before a target in the prompt.")
    max_items: int | None = Field(None, ge=1, description="Score no more than this many pairs.")

    @property
    def called(self) -> str:
        """Names the set in messages."""
        return f"{self.kind} set `{self.name}`"


class GeneratedPairSet(PairSet):
    """Pairs whose target the model generates from the source."""

    template: Literal["labels", "chat"] = Field(
        "labels",
        description="labels: texts after the labels above. chat: the source is a message of the user, and the "
        "answer is the target. The labels are not used.",
    )
    shots: int = Field(
        4, ge=0, description="Solved examples in the prompt. They come from the start of the file and are not scored."
    )
    max_new_tokens: int = Field(96, ge=1, description="Longest generated text, in tokens.")


class TranslationSet(GeneratedPairSet):
    """Sentence pairs for BLEU and chrF. `path` is a .jsonl file (also .gz, .zst) with one object per pair."""

    kind: ClassVar[str] = "translation"

    tokenize: str = Field(
        "13a", description="Tokenizer of sacrebleu: 13a, zh, ja-mecab, char, flores200, …. It is part of the signature."
    )

"""Defines the sections of evaluation sets whose items are pairs of a source text and a target text."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

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


class InformationSet(PairSet):
    """Pairs whose target is read alone, behind its source and behind another source; see docs/information.md."""

    kind: ClassVar[str] = "information"

    source_label: UnicodeText = Field("Source", description="Written before a source; empty: the source alone.")
    target_label: UnicodeText = Field("Target", description="Written before a target; empty: the target alone.")
    shots: list[Annotated[int, Field(ge=0)]] = Field(
        [0],
        min_length=1,
        description="Numbers of solved examples in the prompt, each scored apart. The examples come from the start of "
        "the file: as many as the largest number needs are not scored.",
    )
    candidates: int | None = Field(
        10,
        ge=2,
        description="For the matching accuracy, each source is read with its own target and with those of other pairs, "
        "so many in all; null: no matching accuracy.",
    )

    @model_validator(mode="after")
    def _shots_differ(self) -> InformationSet:
        if len(set(self.shots)) < len(self.shots):
            raise ValueError(f"shots must differ: {', '.join(map(str, self.shots))}")
        return self

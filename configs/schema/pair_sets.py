"""Defines the sections of evaluation sets whose items are pairs of a source text and a target text."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from configs.schema.section import PatternText, Section, SetName, UnicodeText

# A label with such an end is written as it is.
LABEL_ENDS = (":", "：", ">", " ", "\n")

TextMetric = Literal["bleu", "chrf", "rouge"]


class RougeSettings(Section):
    """How ROUGE reads texts."""

    tokens: Literal["words", "characters"] = Field(
        "words",
        description="words: the tokenizer of rouge-score, which knows the letters a to z and digits. characters: each "
        "Chinese, Japanese or Thai character is a token, and so is each word of any other script.",
    )
    stem: bool = Field(False, description="Apply Porter's stemmer, as published scores of English summaries do.")

    @model_validator(mode="after")
    def _stems_english(self) -> RougeSettings:
        if self.stem and self.tokens != "words":
            raise ValueError("`stem` needs `tokens: words`, because the stemmer knows English alone")
        return self


class PairSet(Section):
    """Pairs of a source and a target. `path` is a .jsonl file (also .gz, .zst) with one object per pair."""

    kind: ClassVar[str] = "pair"  # how scores and messages call such a set
    source_of_lines: ClassVar[bool] = False  # a source may have line breaks in a prompt with labels

    name: SetName
    path: PatternText = Field(description="The file with the pairs.")
    source_field: str = Field("source", description="Field with the source text.")
    target_field: str = Field("target", description="Field with the target text.")
    normalize: Literal["none", "spaces"] = Field(
        "none",
        description="none: take the texts as they stand, as published scores do. spaces: write each run of white "
        "space as one blank, and none at the ends. Documents with summaries keep their lines.",
    )
    source_label: UnicodeText = Field(
        "Source",
        description="Written before a source in the prompt, with `: ` behind it. A label that ends in a colon (also "
        "`：`), in `>` or in a blank stands as it is, and an empty one is left out.",
    )
    target_label: UnicodeText = Field(
        "Target", description="Written before a target in the prompt, as `source_label` before a source."
    )
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
    score: list[TextMetric] = Field(
        ["bleu", "chrf"], min_length=1, description="Metrics of the generated texts. rouge: ROUGE-1, -2, -L and -Lsum."
    )
    tokenize: str = Field(
        "13a",
        description="Tokenizer of sacrebleu for BLEU: 13a, zh, ja-mecab, char, flores200, …. It is part of the "
        "signature.",
    )
    rouge: RougeSettings = RougeSettings()

    @model_validator(mode="after")
    def _metrics_differ(self) -> GeneratedPairSet:
        if len(set(self.score)) < len(self.score):
            raise ValueError("`score` names a metric twice; name each once")
        return self


class TranslationSet(GeneratedPairSet):
    """Sentence pairs. `path` is a .jsonl file (also .gz, .zst) with one object per pair."""

    kind: ClassVar[str] = "translation"


class SummarySet(GeneratedPairSet):
    """Documents with summaries: the model's summaries, and sentences chosen without it; see docs/summaries.md."""

    kind: ClassVar[str] = "summarization"
    source_of_lines: ClassVar[bool] = True

    source_field: str = Field("document", description="Field with the document.")
    target_field: str = Field("summary", description="Field with the reference summary, or a list of several.")
    source_label: UnicodeText = Field("Text", description="Written before a document in the prompt.")
    target_label: UnicodeText = Field("Summary", description="Written before a summary in the prompt.")
    shots: int = Field(
        0, ge=0, description="Solved examples in the prompt. They come from the start of the file and are not scored."
    )
    score: list[TextMetric] = Field(
        ["rouge"], min_length=1, description="Metrics of the summaries. rouge: ROUGE-1, -2, -L and -Lsum."
    )
    split: Literal["sentences", "lines"] = Field(
        "sentences",
        description="What the baselines choose among. sentences: ended by punctuation, English or Chinese. lines: such "
        "as the turns of a dialogue.",
    )
    sentences: int = Field(3, ge=1, description="Most sentences or lines that a baseline chooses.")
    max_sentences: int = Field(
        40, ge=2, description="Choose among the first n sentences or lines of a document; the note counts longer ones."
    )
    information_items: int = Field(
        20,
        ge=0,
        description="Also choose by the model's code lengths, in the first n documents; 0: never. It takes many "
        "forward passes.",
    )


class InformationSet(PairSet):
    """Pairs whose target is read alone, behind its source and behind another source; see docs/information.md."""

    kind: ClassVar[str] = "information"

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

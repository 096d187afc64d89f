"""The recipe's `evaluation` and `report` sections: what is scored, and what gates the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from configs.schema.section import PathText, PatternText, Section

# Scores are called `perplexity/NAME/…`, and gates name them between blanks.
SetName = Annotated[str, Field(pattern=r"^[^\s/]+$", description="In the names of its scores; no blanks, no `/`.")]


def _unicode(text: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # YAML's escapes can spell it
        raise ValueError("half of a surrogate pair is no character")
    return text


Prompt = Annotated[str, AfterValidator(_unicode)]


def _refuse_repeated(what: str, names: Sequence[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{what} must differ; repeated: {', '.join(repeated)}")


class PerplexitySet(Section):
    """Documents scored whole: perplexity per token, bits per byte."""

    name: SetName
    path: PatternText = Field(description="Any file that data_prep reads.")
    text_field: str = Field("text", description="Field with the text, as of a source.")
    text_documents: Literal["file", "line", "paragraph"] = Field(
        "file", description="What one document is in a .txt file."
    )
    stride: int | None = Field(
        None, ge=1, description="New tokens per window of context_length; null: half the context."
    )
    max_documents: int | None = Field(None, ge=1, description="Score no more than the first n documents.")


class TranslationSet(Section):
    """Pairs for BLEU; `path` is .jsonl(.gz/.zst) with one object per pair."""

    name: SetName
    path: PatternText = Field(description="The file of pairs.")
    source_field: str = Field("source", description="Field with the source sentence.")
    target_field: str = Field("target", description="Field with the reference translation.")
    source_label: Prompt = Field("Source", description="Written before a source sentence in the prompt.")
    target_label: Prompt = Field("Target", description="Written before a translation in the prompt.")
    shots: int = Field(
        4, ge=0, description="Solved examples in the prompt, taken from the start of the file and not scored."
    )
    max_items: int | None = Field(None, ge=1, description="Score no more than n pairs.")
    max_new_tokens: int = Field(96, ge=1, description="Longest translation, in tokens.")
    tokenize: str = Field(
        "13a", description="sacrebleu tokenizer: 13a, zh, ja-mecab, char, flores200, …; part of the signature."
    )


class Benchmarks(Section):
    """lm-eval tasks."""

    tasks: list[str] = Field([], description="Names known to lm-eval or found under `include_path`.")
    include_path: PathText | None = Field(None, description="Directory with task YAML files.")
    num_fewshot: int | None = Field(None, ge=0, description="Overrides the tasks' own number of examples.")
    limit: int | None = Field(None, ge=1, description="Only the first n items of each task (said in the report).")
    batch_size: int = Field(16, ge=1, description="Requests per forward pass; changes speed, never a score.")

    @model_validator(mode="after")
    def _tasks_differ(self) -> Benchmarks:
        _refuse_repeated("tasks", self.tasks)
        return self


class Samples(Section):
    """Text to show in the report."""

    prompts: list[Prompt] = Field(["Once upon a time"], description="Texts to continue.")
    max_new_tokens: int = Field(128, ge=1, description="Longest continuation, in tokens.")
    temperature: float = Field(0.8, ge=0, description="0: always the likeliest token.")
    top_k: int | None = Field(None, ge=0, description="Only the most likely tokens; 0 or null: all.")
    top_p: float | None = Field(
        0.95, gt=0, le=1, description="Only the likeliest tokens that add up to this probability; null: all."
    )


class Evaluation(Section):
    """Scores made after training; see docs/evaluation.md."""

    perplexity: list[PerplexitySet] = Field([], description="Sets for perplexity and bits per byte.")
    translation: list[TranslationSet] = Field([], description="Sets for BLEU and chrF.")
    benchmarks: Benchmarks = Benchmarks()
    samples: Samples = Samples()
    batch_size: int = Field(16, ge=1, description="Windows per forward pass; changes speed, never a score.")
    bootstrap_samples: int = Field(1000, ge=100, description="Resamples behind each 95% interval.")

    @model_validator(mode="after")
    def _names_differ(self) -> Evaluation:
        _refuse_repeated("names of perplexity sets", [item.name for item in self.perplexity])
        _refuse_repeated("names of translation sets", [item.name for item in self.translation])
        return self


class Report(Section):
    """The page and its gates."""

    title: str | None = Field(None, description="Title of the page; null: the run's name.")
    gates: list[str] = Field(
        [],
        description="`metric op value`, such as `perplexity/heldout/bits_per_byte < 2.4`; "
        "the value may be another metric's name.",
    )

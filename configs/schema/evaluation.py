"""Defines the recipe's `evaluation` and `report` sections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from configs.schema.chat import Shape
from configs.schema.section import PathText, PatternText, Section

# Scores are named `perplexity/NAME/…`, and gates separate names by blanks.
SetName = Annotated[str, Field(pattern=r"^[^\s/]+$", description="Name used in its scores; no blanks, no `/`.")]


def _unicode(text: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # YAML's escapes can spell it
        raise ValueError("it contains half of a surrogate pair, which is not a character; remove it")
    return text


Prompt = Annotated[str, AfterValidator(_unicode)]


def _refuse_repeated(what: str, names: Sequence[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{what} must differ; repeated: {', '.join(repeated)}")


class PerplexitySet(Section):
    """A set of whole documents, scored by perplexity per token and bits per byte."""

    name: SetName
    path: PatternText = Field(description="Files in any format that `data.sources` reads.")
    text_field: str = Field("text", description="Field with the text, as in `data.sources`.")
    text_documents: Literal["file", "line", "paragraph"] = Field(
        "file", description="Unit of a .txt file that is one document."
    )
    stride: int | None = Field(
        None, ge=1, description="New tokens per window of `model.context_length`; null: half of it."
    )
    max_documents: int | None = Field(None, ge=1, description="Score no more than the first n documents.")


class TranslationSet(Section):
    """Sentence pairs for BLEU and chrF. `path` is a .jsonl file (also .gz, .zst) with one object per pair."""

    name: SetName
    path: PatternText = Field(description="The file with the pairs.")
    source_field: str = Field("source", description="Field with the source sentence.")
    target_field: str = Field("target", description="Field with the reference translation.")
    template: Literal["labels", "chat"] = Field(
        "labels",
        description="labels: sentences after the labels below. chat: the source is a message of the user, and the "
        "answer is the translation. The labels are not used.",
    )
    source_label: Prompt = Field("Source", description="Written before a source sentence in the prompt.")
    target_label: Prompt = Field("Target", description="Written before a translation in the prompt.")
    shots: int = Field(
        4, ge=0, description="Solved examples in the prompt. They come from the start of the file and are not scored."
    )
    max_items: int | None = Field(None, ge=1, description="Score no more than this many pairs.")
    max_new_tokens: int = Field(96, ge=1, description="Maximum length of a translation, in tokens.")
    tokenize: str = Field(
        "13a", description="Tokenizer of sacrebleu: 13a, zh, ja-mecab, char, flores200, …. It is part of the signature."
    )


class Benchmarks(Section):
    """Benchmarks of lm-eval."""

    tasks: list[str] = Field([], description="Names of tasks, from lm-eval or from `include_path`.")
    include_path: PathText | None = Field(None, description="Directory with YAML files of tasks.")
    num_fewshot: int | None = Field(
        None, ge=0, description="Number of examples in the prompt; null: the task's own number."
    )
    limit: int | None = Field(
        None, ge=1, description="Score only the first items of each task, as many as this. The report notes it."
    )
    batch_size: int = Field(16, ge=1, description="Requests per forward pass. It changes the speed, not the scores.")
    chat_template: bool = Field(
        False,
        description="Ask assistants in their chat template. Such scores cannot be compared with those of a base model.",
    )

    @model_validator(mode="after")
    def _tasks_differ(self) -> Benchmarks:
        _refuse_repeated("tasks", self.tasks)
        return self


class ChatSet(Section):
    """Prompts whose answers are checked: accuracy, pass@k and stop rate of an assistant."""

    name: SetName
    path: PatternText = Field(description="Files in any format that `data.sources` reads.")
    shape: Shape = Field("gsm8k", description="How a record becomes a prompt with its reference, as in `data.sources`.")
    samples: int = Field(
        1,
        ge=1,
        description="Answers per prompt. 1: greedy. More: drawn at `temperature`, for pass@k of 1, 2, 4, … up to it.",
    )
    temperature: float = Field(1.0, gt=0, description="Temperature of drawn answers.")
    max_new_tokens: int = Field(64, ge=1, description="Longest answer, in tokens.")
    max_items: int | None = Field(None, ge=1, description="Score no more than the first n prompts.")


class PreferenceSet(Section):
    """Preference pairs: how often a reward model, and simple baselines, agree with them."""

    name: SetName
    path: PatternText = Field(description="Files in any format that `data.sources` reads.")
    shape: Shape = Field("hh", description="How a record becomes a pair, as in `data.sources`.")
    max_items: int | None = Field(None, ge=1, description="Score no more than the first n pairs.")


class Samples(Section):
    """Generated text for the report."""

    prompts: list[Prompt] = Field(["Once upon a time"], description="Texts that the model continues.")
    max_new_tokens: int = Field(128, ge=1, description="Maximum length of a continuation, in tokens.")
    temperature: float = Field(0.8, ge=0, description="Sampling temperature; 0: always the likeliest token.")
    top_k: int | None = Field(None, ge=0, description="Sample among the k likeliest tokens; 0 or null: all.")
    top_p: float | None = Field(
        0.95,
        gt=0,
        le=1,
        description="Sample among the likeliest tokens whose probabilities add up to this; null: all.",
    )


class Evaluation(Section):
    """Evaluation after training; see docs/evaluation.md."""

    perplexity: list[PerplexitySet] = Field([], description="Sets for perplexity and bits per byte.")
    translation: list[TranslationSet] = Field([], description="Sets for BLEU and chrF.")
    benchmarks: Benchmarks = Benchmarks()
    chat: list[ChatSet] = Field(
        [], description="Prompts for assistants. The base of a recipe with stages is asked too, if it has chat tokens."
    )
    preference: list[PreferenceSet] = Field([], description="Pairs for a reward model; not scored for other models.")
    samples: Samples = Samples()
    batch_size: int = Field(16, ge=1, description="Windows per forward pass. It changes the speed, not the scores.")
    bootstrap_samples: int = Field(1000, ge=100, description="Bootstrap resamples for each 95% interval.")

    @model_validator(mode="after")
    def _names_differ(self) -> Evaluation:
        _refuse_repeated("names of perplexity sets", [item.name for item in self.perplexity])
        _refuse_repeated("names of translation sets", [item.name for item in self.translation])
        _refuse_repeated("names of chat sets", [item.name for item in self.chat])
        _refuse_repeated("names of preference sets", [item.name for item in self.preference])
        return self


class Report(Section):
    """The report page and its gates."""

    title: str | None = Field(None, description="Title of the page; null: the run's name.")
    gates: list[str] = Field(
        [],
        description="Conditions `metric op value`, such as `perplexity/heldout/bits_per_byte < 2.4`. The value can be "
        "the name of another metric.",
    )

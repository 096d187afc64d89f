"""Defines the recipe's `evaluation` and `report` sections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from configs.schema.chat import Shape
from configs.schema.compression import Compression
from configs.schema.denoising import Denoising
from configs.schema.pair_sets import InformationSet, SummarySet, TranslationSet
from configs.schema.section import PathText, PatternText, Section, SetName, UnicodeText


def _refuse_repeated(what: str, names: Sequence[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{what} must differ; repeated: {', '.join(repeated)}")


class PerplexitySet(Section):
    """A set of whole documents, scored by perplexity per token and bits per byte; see docs/published-scores.md."""

    name: SetName
    path: PatternText = Field(description="Files in any format that `data.sources` reads.")
    text_field: str = Field("text", description="Field with the text, as in `data.sources`.")
    text_documents: Literal["file", "line", "paragraph"] = Field(
        "file", description="Unit of a .txt file that is one document."
    )
    normalize: Literal["none", "training"] = Field(
        "none",
        description="none: score the text as it stands, as published figures do. training: apply `data.normalize` "
        "first.",
    )
    detokenize: Literal["none", "wikitext"] = Field(
        "none",
        description="wikitext: the model reads WikiText without the blanks of its tokenization, as lm-eval undoes "
        "them. Bytes and words are those of the text before.",
    )
    stream: Literal["documents", "text", "end_of_document"] = Field(
        "documents",
        description="documents: score each document by itself. text: join all by `separator` to one text. "
        "end_of_document: join their tokens by the end-of-document token, which is scored too.",
    )
    separator: str = Field("\n\n", description="With `stream: text`: the text between two documents.")
    start_token: Literal["begin", "none"] = Field(
        "begin",
        description="begin: the first token follows the begin token of the vocabulary. none: the first token is read "
        "only, and not scored.",
    )
    context: int | None = Field(
        None, ge=1, description="Maximum number of tokens that a prediction can see; null: `model.context_length`."
    )
    stride: int | None = Field(
        None, ge=1, description="New tokens per window of the context; null: half of it. Equal to it: no overlap."
    )
    windows: Literal["sliding", "pieces", "full_pieces"] = Field(
        "sliding",
        description="sliding: a window moves by `stride`. pieces: the tokens are cut into pieces of `context` + 1, "
        "whose first token is read only. full_pieces: the same, without a last piece that is shorter.",
    )
    words: Literal["none", "whitespace", "lm_eval"] = Field(
        "none",
        description="Also score perplexity per word and per byte. whitespace: words are the pieces between white "
        "space. lm_eval: the same, and white space at either end of a document counts as one word more.",
    )
    by: str | None = Field(
        None, min_length=1, description="Also score the documents of each value of this field, such as `language`."
    )
    max_documents: int | None = Field(None, ge=1, description="Score no more than the first n documents.")
    late_minus_early: bool = Field(
        False,
        description="Also score the loss of the last quarter of the context minus that of the first (docs/meta.md).",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> PerplexitySet:
        if self.by is not None and self.stream != "documents":
            raise ValueError("`by` needs `stream: documents`, because one stream has no documents to tell apart")
        if self.separator != "\n\n" and self.stream != "text":
            raise ValueError("`separator` needs `stream: text`")
        if self.stride is not None and self.windows != "sliding":
            raise ValueError("`stride` needs `windows: sliding`; pieces do not overlap")
        return self


class GenerationSettings(Section):
    """Settings of generation that replace those of a task, by the names of lm-eval's `gen_kwargs`."""

    until: list[str] | None = Field(None, description="Texts that end an answer.")
    max_gen_toks: int | None = Field(None, ge=1, description="Longest answer, in tokens.")
    do_sample: bool | None = Field(None, description="Draw tokens; otherwise always take the likeliest.")
    temperature: float | None = Field(None, ge=0, description="Sampling temperature.")
    top_k: int | None = Field(None, ge=0, description="Sample among the k likeliest tokens; 0: all.")
    top_p: float | None = Field(
        None, gt=0, le=1, description="Sample among the likeliest tokens up to this probability."
    )


class BenchmarkTask(Section):
    """A task or group of lm-eval with its own settings; null: those of `benchmarks`, else the task's own."""

    task: str = Field(min_length=1, description="Name in lm-eval, or in a file under `include_path`.")
    name: SetName | None = Field(
        None, description="Name in its scores; null: that of the task. So one task can be scored twice."
    )
    num_fewshot: int | None = Field(None, ge=0, description="Number of examples in the prompt.")
    limit: int | None = Field(None, ge=1, description="Score only the first items, as many as this.")
    seed: int = Field(1234, ge=0, description="Draws the examples in the prompt; lm-eval's default is the same.")
    chat_template: bool | None = Field(None, description="Ask assistants in their chat template.")
    gen_kwargs: GenerationSettings | None = Field(None, description="Settings of generation, for tasks that generate.")

    @property
    def shown(self) -> str:
        """The name in its scores."""
        return self.name or self.task


def _kind_of_entry(value: object) -> str:
    return "str" if isinstance(value, str) else "entry"


TaskEntry = Annotated[
    Annotated[str, Field(min_length=1), Tag("str")] | Annotated[BenchmarkTask, Tag("entry")],
    Discriminator(_kind_of_entry),
]


class Benchmarks(Section):
    """Benchmarks of lm-eval."""

    tasks: list[TaskEntry] = Field(
        [],
        description="Names of tasks or groups, from lm-eval or from `include_path`; or tasks with own settings.",
    )
    include_path: PathText | None = Field(None, description="Directory with YAML files of tasks.")
    num_fewshot: int | None = Field(
        None, ge=0, description="Number of examples in the prompt; null: the task's own number."
    )
    limit: int | None = Field(
        None, ge=1, description="Score only the first items of each task, as many as this. The report notes it."
    )
    batch_size: int = Field(
        16, ge=1, description="Has no effect; recipes of earlier versions set it. See `evaluation.batch_tokens`."
    )
    chat_template: bool = Field(
        False,
        description="Ask assistants in their chat template. Such scores cannot be compared with those of a base model.",
    )

    @model_validator(mode="after")
    def _tasks_differ(self) -> Benchmarks:
        _refuse_repeated("tasks", [entry.shown for entry in self.entries])
        return self

    @property
    def entries(self) -> list[BenchmarkTask]:
        """All tasks with their settings; the section's where they have none."""
        listed = [BenchmarkTask(task=entry) if isinstance(entry, str) else entry for entry in self.tasks]
        usual = {"num_fewshot": self.num_fewshot, "limit": self.limit, "chat_template": self.chat_template}
        return [
            entry.model_copy(update={key: value for key, value in usual.items() if getattr(entry, key) is None})
            for entry in listed
        ]

    @property
    def names(self) -> list[str]:
        """The names by which lm-eval knows the tasks, each once."""
        return list(dict.fromkeys(entry.task for entry in self.entries))


class Core(Section):
    """Tasks whose centred accuracies are averaged into one score, as CORE of DCLM (arXiv:2406.11794) does."""

    tasks: list[str] = Field(
        [],
        description="Tasks of `benchmarks.tasks`, as `task` or `task/metric`; without a metric `acc` counts, or else "
        "`exact_match`. Runs can be compared if their lists are equal.",
    )
    chance: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(
        {}, description="Task -> accuracy of guessing, where a task does not tell it; 0 for one without choices."
    )


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


# Names of other scores of what people say.
_TAKEN = ("agreement", "self_agreement", "attention")


class Scale(Section):
    """A scale on which people rate an answer."""

    name: SetName
    question: str = Field(description="What the rater is asked.")
    anchors: list[str] = Field(min_length=2, max_length=9, description="What each grade means, the worst first.")


# The classic scales of the ARPA machine translation evaluations, with the anchors of LDC's guidelines (2005).
_FLUENCY = Scale(
    name="fluency",
    question="How good is the language?",
    anchors=["incomprehensible", "disfluent", "not native", "good", "flawless"],
)
_ADEQUACY = Scale(
    name="adequacy",
    question="How much of what was asked does it give?",
    anchors=["nothing", "little", "much", "most", "everything"],
)


class PeopleSet(Section):
    """Prompts whose answers people judge with `replica judge`; see docs/people.md."""

    name: str = Field("main", pattern=r"^[A-Za-z0-9][\w.-]*$", description="Name used in its scores and its folder.")
    path: PatternText = Field(description="Files in any format that `data.sources` reads; .txt: a prompt a line.")
    shape: Shape = Field(
        "text",
        description="How a record becomes a prompt, as in `data.sources`. text: its field `prompt` or `text`, and its "
        "`reference` if it has one.",
    )
    question: str = Field("Which is better?", min_length=1, description="What raters are asked about two answers.")
    guidelines: str = Field("", description="What raters read before they begin.")
    scales: list[Scale] = Field(
        [], max_length=9, description="Scales for `replica judge --rate`; none: fluency and adequacy, from 1 to 5."
    )
    max_items: int | None = Field(None, ge=1, description="Ask about no more than the first n prompts.")
    max_new_tokens: int = Field(256, ge=1, description="Longest answer, in tokens.")
    temperature: float = Field(0.0, ge=0, description="Temperature of the answers; 0: always the likeliest token.")
    attention: int = Field(5, ge=0, description="Trials with a planted bad answer, which tell who does not read.")
    repeats: float = Field(
        0.1,
        ge=0,
        le=0.5,
        description="Share of trials that return, with sides swapped: do raters agree with themselves?",
    )

    @property
    def rated_on(self) -> list[Scale]:
        """The scales, or those that are usual."""
        return self.scales or [_FLUENCY, _ADEQUACY]

    @model_validator(mode="after")
    def _scales_differ(self) -> PeopleSet:
        _refuse_repeated("names of scales", [scale.name for scale in self.scales])
        if taken := [scale.name for scale in self.scales if scale.name in _TAKEN]:
            raise ValueError(f"a scale cannot be called {taken[0]}: another score has that name")
        return self


class Samples(Section):
    """Generated text for the report."""

    prompts: list[UnicodeText] = Field(
        ["Once upon a time"],
        description="Texts that the model continues; a masked model fills in gaps such as `<|mask|>*12`.",
    )
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
    translation: list[TranslationSet] = Field([], description="Sets for BLEU, chrF and ROUGE.")
    summarization: list[SummarySet] = Field([], description="Documents with summaries; see docs/summaries.md.")
    information: list[InformationSet] = Field([], description="Pairs for bits that a source saves of its target.")
    compression: Compression = Compression()
    benchmarks: Benchmarks = Benchmarks()
    core: Core = Core()
    chat: list[ChatSet] = Field(
        [], description="Prompts for assistants. The base of a recipe with stages is asked too, if it has chat tokens."
    )
    preference: list[PreferenceSet] = Field([], description="Pairs for a reward model; not scored for other models.")
    people: list[PeopleSet] = Field([], description="Prompts whose answers people judge; see docs/people.md.")
    samples: Samples = Samples()
    batch_size: int | None = Field(
        None,
        ge=1,
        description="Most windows of a forward pass, and answers that decode together; null: as many as suit the "
        "device. It changes the speed, not the scores.",
    )
    batch_tokens: int | None = Field(
        None,
        ge=1,
        description="Most tokens of a forward pass, padding included; null: as many as suit the device. It changes the "
        "speed, not the scores.",
    )
    bound_draws: int = Field(
        16, ge=2, description="Draws of hidden tokens for each window that a masked model scores (docs/any-order.md)."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="In which the model reads. auto: bf16 on a GPU, unless it was trained in fp32; fp32 on a CPU. "
        "Results name it, and scores of different precision are not compared.",
    )
    divide_weights: bool | None = Field(
        None,
        description="Divide the weights between the ranks, as at ZeRO-3, instead of a whole model on each; null: when "
        "they need more than half of a GPU's memory. It changes the speed, not the scores.",
    )
    denoising: Denoising = Denoising()
    bootstrap_samples: int = Field(1000, ge=100, description="Bootstrap resamples for each 95% interval.")

    @model_validator(mode="after")
    def _names_differ(self) -> Evaluation:
        _refuse_repeated("names of perplexity sets", [item.name for item in self.perplexity])
        _refuse_repeated("names of translation sets", [item.name for item in self.translation])
        _refuse_repeated("names of information sets", [item.name for item in self.information])
        _refuse_repeated("names of summarization sets", [item.name for item in self.summarization])
        _refuse_repeated("names of chat sets", [item.name for item in self.chat])
        _refuse_repeated("names of preference sets", [item.name for item in self.preference])
        _refuse_repeated("names of sets for people", [item.name for item in self.people])
        _refuse_repeated("core tasks", self.core.tasks)
        _refuse_repeated("compression.codec", self.compression.codec)
        if foreign := sorted(set(self.compression.codec) - {item.name for item in self.perplexity}):
            raise ValueError(f"compression.codec are no perplexity sets: {', '.join(foreign)}; add them to perplexity")
        listed = {entry.shown for entry in self.benchmarks.entries}
        if foreign := [task for task in self.core.tasks if task.partition("/")[0] not in listed]:
            raise ValueError(f"core.tasks are not among benchmarks.tasks: {', '.join(foreign)}; add them there")
        return self


class Report(Section):
    """The report page and its gates."""

    title: str | None = Field(None, description="Title of the page; null: the run's name.")
    gates: list[str] = Field(
        [],
        description="Conditions `metric op value`, such as `perplexity/heldout/bits_per_byte < 2.4`. The value can be "
        "the name of another metric. With ` (whole interval)` behind it, both ends of the interval must meet it. Also "
        "`metric not worse than baseline` and `metric better than baseline`.",
    )
    baseline: str | None = Field(
        None,
        description="What to compare with: a run, RUN:STAGE, or a directory with the `results.json` and `scores` of "
        "one; null: nothing.",
    )

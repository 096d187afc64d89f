"""Defines, reads and writes `results.json`, the outcome of an evaluation. Page, summary and gates are made from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from configs.common.files import fingerprint, read_json, write_json
from configs.common.layout import RESULTS

SCHEMA = 2
CENTRED = "aggregate/core/centred_accuracy"  # the score that `eval/aggregate.py` makes; gates know it too
EXACT = "exact"  # begins the method of an interval of a score that is counted, not estimated
BOUND = "upper bound"  # how the note of a bound begins
OF_BOUNDS = "made of upper bounds of nats"  # and that of a difference or a choice of bounds
CHANCE_OF = "chance of "  # in its settings, before the name of a task's score
MEMBERS = "members"  # in the settings of a group: name of each task's score -> its weight; the weights add up to 1
_OF_A_TASK = ("prompts", "task")  # settings that are fingerprints of one task


class ScoreName(NamedTuple):
    """The parts of a score's name, `kind/subject/metric` and at times `/variant`.

    Attributes:
        kind: `perplexity`, `compression`, `translation`, `summarization`, `information`, `benchmark`, `chat`,
            `preference`, `conversations` or `human`.
        subject: the set or task.
        metric: such as `bits_per_byte`.
        variant: a filter of lm-eval, a number of solved examples (`4-shot`), `clean` or `touched`, a model that people
            judged; empty: the whole.
    """

    kind: str
    subject: str
    metric: str
    variant: str = ""

    @classmethod
    def parse(cls, name: str) -> ScoreName:
        """Splits a name such as `perplexity/heldout/bits_per_byte`; missing parts are empty."""
        kind, subject, metric, variant = (*name.split("/", 3), "", "", "")[:4]
        return cls(kind, subject, metric, variant)


@dataclass(frozen=True)
class Result:
    """One score, with its interval, unit and origin.

    Attributes:
        name: see `ScoreName`, such as `perplexity/heldout/bits_per_byte`.
        low, high: 95% interval; both None if it cannot be computed (a single item).
        n: number of scored documents, pairs or items.
        unit: unit of the value.
        interval: method of the interval.
        chance: score of random guessing, if known.
        signature: signature of the scoring program, such as sacrebleu's. It must be equal for scores to be comparable.
        set: fingerprint of the scored content.
        settings: settings of the evaluation, such as the number of shots; see `eval/comparison/comparable.py`.
        tokenizer: fingerprint of the tokenizer, if the unit is per token.

    In `results.json` a value or an end of an interval that is infinite is null.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    n: int
    unit: str
    higher_is_better: bool
    interval: str
    chance: float | None = None
    task_version: str | None = None
    signature: str | None = None
    note: str | None = None
    set: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None

    @property
    def named(self) -> ScoreName:
        """The parts of the name."""
        return ScoreName.parse(self.name)

    @property
    def is_bound(self) -> bool:
        """Tells whether the value is an upper bound of what it is called, as its note says."""
        return (self.note or "").startswith(BOUND)

    @property
    def is_made_of_bounds(self) -> bool:
        """Tells whether the value is a number of bits or nats that is made of bounds, and is no bound itself."""
        return (self.note or "").startswith(OF_BOUNDS) and ("bits" in self.unit or "nats" in self.unit)

    def __post_init__(self) -> None:
        if math.isnan(self.value):
            raise ValueError(
                f"{self.name} is {self.value}: the checkpoint gives no finite probabilities. Did training diverge? "
                "See metrics.jsonl, and score an earlier checkpoint: replica eval RUN --step N, or --best."
            )


def members_of(result: Result) -> list[tuple[str, float]]:
    """Returns the names of the scores that an aggregate is made of, and the accuracy of guessing of each."""
    named = [
        (key.removeprefix(CHANCE_OF), value) for key, value in result.settings.items() if key.startswith(CHANCE_OF)
    ]
    return [(f"benchmark/{name}", float(chance)) for name, chance in named]


def made_alike(members: Sequence[Result]) -> dict[str, Any]:
    """Returns how the members of an aggregate were made: settings that all have by name, the others as `prompts`.

    It depends neither on the order of the members nor on that of their settings, which a file may change.
    """
    first, *others = members
    shared = {
        key: value
        for key, value in first.settings.items()
        if key not in _OF_A_TASK and all(key in one.settings and one.settings[key] == value for one in others)
    }
    own = [{key: value for key, value in one.settings.items() if key not in shared} for one in members]
    rest = sorted(
        [one.name, one.task_version, fingerprint(settings)] for one, settings in zip(members, own, strict=True)
    )
    return {**shared, "prompts": fingerprint(rest)[:8]}


def as_json(result: Result) -> dict[str, Any]:
    """Converts a score to JSON. Infinite values become null."""
    values = asdict(result)
    for name in ("value", "low", "high"):
        if values[name] is not None and not math.isfinite(values[name]):
            values[name] = None
    return values


def from_json(values: dict[str, Any]) -> Result:
    """Converts JSON to a score; the inverse of `as_json`."""
    value, low, high = (values[name] for name in ("value", "low", "high"))
    if value is None:
        value = math.inf
    if high is None and (low is not None or value == math.inf) and not values["interval"].startswith("none"):
        low, high = (math.inf if low is None else low), math.inf
    return Result(**{**values, "value": value, "low": low, "high": high})


@dataclass(frozen=True)
class Change:
    """A score compared with the same score of another run, item by item where both have items.

    Attributes:
        name: of the score.
        against: name of the other run; of a stage, the one that it started from, or `base`.
        before, after: the two scores, on the items that both have.
        low, high: 95% interval of `after - before`; both None where no item tells the two apart.
        p: of the test that nothing has changed; None where nothing could be tested.
        method: of test and interval.
        verdict: `better`, `worse`, `no difference`, or `incomparable`.
        reason: explains the verdict, where it needs that.
        n: number of items that both have; 0: they were not compared item by item.
        n_before, n_after: number of items of each.
        adjusted: p after Holm's method over all scores compared with this one. It decides the verdict.
    """

    name: str
    against: str
    before: float
    after: float
    low: float | None
    high: float | None
    p: float | None
    method: str
    verdict: str
    reason: str | None = None
    n: int = 0
    n_before: int = 0
    n_after: int = 0
    adjusted: float | None = None

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Change:
        """Reads a change; earlier versions called the other run `parent`."""
        kept = {("against" if name == "parent" else name): value for name, value in values.items()}
        return cls(**kept | {name: math.inf if kept[name] is None else kept[name] for name in ("before", "after")})

    def as_json(self) -> dict[str, Any]:
        """Converts the change to JSON. Infinite scores become null."""
        values = asdict(self)
        for name in ("before", "after", "low", "high"):
            if values[name] is not None and not math.isfinite(values[name]):
                values[name] = None
        return values


@dataclass(frozen=True)
class Failure:
    """A part of the evaluation that failed.

    Attributes:
        name: name of the scores without the metric: `translation/wmt`, `benchmark/piqa`, `samples/prompts`.
        reason: the error message.
        bug: True for a bug, False for a user error.
    """

    name: str
    reason: str
    bug: bool = False


class ScoresFailed(ValueError):
    """Some scores failed. `saved`: `results.json` has the others; otherwise all failed."""

    def __init__(self, message: str, saved: bool) -> None:
        super().__init__(message)
        self.saved = saved


class ScoresBroken(RuntimeError):
    """Some scores failed because of a bug; see `ScoresFailed`."""

    def __init__(self, message: str, saved: bool) -> None:
        super().__init__(message)
        self.saved = saved


@dataclass(frozen=True)
class Sample:
    """Generated text.

    Attributes:
        kind: `prompt` (the recipe's), `document` (the beginning of a held-out one), `translation` (of `prompt`),
            `chat` (an answer to `prompt`), or `infill` (`prompt` with its gaps filled in).
        reference: the real continuation of the document, a human translation, or the right answer.
        right: of an answer that was checked.
    """

    kind: str
    title: str
    prompt: str
    text: str
    settings: str
    reference: str | None = None
    right: bool | None = None


@dataclass(frozen=True)
class Results:
    """The contents of `results.json`.

    Attributes:
        fingerprint: fingerprint of all inputs (checkpoint, settings, contents of sets, code). If it is unchanged,
            scoring is skipped.
        checkpoint: name, step and fingerprint of the checkpoint, and its number of training `tokens`.
        model: family, parameters, vocabulary, context.
        data: counts of the data manifest: tokens, documents, bytes by split; `mixture`: the table of shares.
        funnel: rows of the data funnel.
        lineage: name -> file or fingerprint, from data to results.
        versions: package -> version.
        recipe: settings of the checkpoint and of this evaluation, with secrets masked.
        chosen: choice of the checkpoint (`step`, `best`; neither: the newest), and `overrides` of this evaluation.
        items: name of a part -> fingerprint of its inputs, of the parts whose items are stored (`eval/items/store.py`).
        people: what people judged: for each session its models, raters with their habits, and number of votes; or why
            it gives no scores now (`eval/people/part.py`).
        failures: failed parts, each with the reason. The same command tries them again.
        stage: of a stage, its `name`, the `kind` of its objective, the name of its `parent`, and the fingerprint of the
            parent's results that `changes` compares with; empty for a base model.
        changes: of a stage, scores compared with those of its parent.
    """

    fingerprint: str
    checkpoint: dict[str, Any]
    recipe_fingerprint: str
    data_fingerprint: str
    model: dict[str, Any]
    data: dict[str, Any]
    results: list[Result]
    samples: list[Sample]
    funnel: list[dict[str, Any]]
    lineage: list[dict[str, Any]]
    versions: dict[str, str]
    seconds: float
    recipe: dict[str, Any] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    items: dict[str, str] = field(default_factory=dict)
    people: list[dict[str, Any]] = field(default_factory=list)
    stage: dict[str, Any] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def save(self, run: Path) -> Path:
        """Writes `results.json` into the run directory, atomically."""
        target = run / RESULTS
        values = {
            **asdict(self),
            "results": [as_json(result) for result in self.results],
            "changes": [change.as_json() for change in self.changes],
        }
        write_json(target, {"schema": SCHEMA, **values})
        return target

    def by_name(self) -> dict[str, Result]:
        """Maps names to scores, in order."""
        return {result.name: result for result in self.results}


def load_results(run: Path) -> Results:
    """Reads `results.json` of a run directory.

    Raises:
        ValueError: when the file is missing, not JSON, or of another schema.
    """
    path = run / RESULTS
    if not path.is_file():
        raise ValueError(f"{run} has no {RESULTS}: evaluate the run first with `replica eval {run}`")
    raw = read_json(path)
    names = {one.name for one in fields(Results)}
    needed = {one.name for one in fields(Results) if one.default_factory is MISSING}
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA or needed - raw.keys():
        raise ValueError(f"{path} was written by another version; make it again with `replica eval {run}`")
    values = {name: raw[name] for name in names & raw.keys()}
    values["results"] = [from_json(item) for item in raw["results"]]
    values["samples"] = [Sample(**item) for item in raw["samples"]]
    values["failures"] = [Failure(**item) for item in raw.get("failures", [])]
    values["changes"] = [Change.from_json(item) for item in raw.get("changes", [])]
    return Results(**values)

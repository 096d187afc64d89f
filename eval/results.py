"""The outcome of an evaluation: `results.json`, of which the page, the summary and the gate are renderings."""

from __future__ import annotations

import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from configs.common.files import read_json, write_json
from configs.common.layout import RESULTS

SCHEMA = 2


class ScoreName(NamedTuple):
    """The parts of a score's name, `kind/subject/metric` and at times `/variant`.

    Attributes:
        kind: `perplexity`, `compression`, `translation` or `benchmark`.
        subject: the set or task.
        metric: such as `bits_per_byte`.
        variant: a filter of lm-eval, `clean` or `touched`; empty for the score of the whole.
    """

    kind: str
    subject: str
    metric: str
    variant: str = ""

    @classmethod
    def parse(cls, name: str) -> ScoreName:
        """The parts of `perplexity/heldout/bits_per_byte`; parts that are not there are empty."""
        kind, subject, metric, variant = (*name.split("/", 3), "", "", "")[:4]
        return cls(kind, subject, metric, variant)


@dataclass(frozen=True)
class Result:
    """One score, with what is needed to trust it.

    Attributes:
        name: see `ScoreName`, such as `perplexity/heldout/bits_per_byte`.
        low, high: 95% interval; both None where nothing can be said (a single unit).
        n: how many units stand behind the value: documents, pairs, items.
        unit: of the value.
        interval: how the interval was made.
        chance: score of blind guessing, where it is known.
        signature: of the program that scored (sacrebleu's, for instance): must be equal for scores to be comparable.
        set: fingerprint of the content that was scored.
        settings: of the evaluation, such as the number of shots; see `eval/comparable.py`.
        tokenizer: fingerprint of the tokenizer, where the unit is per token.

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

    def __post_init__(self) -> None:
        if math.isnan(self.value):
            raise ValueError(
                f"{self.name} is {self.value}: the checkpoint gives no finite probabilities. Did training diverge? "
                "See metrics.jsonl, and score an earlier checkpoint: replica eval RUN --step N, or --best."
            )


def as_json(result: Result) -> dict[str, Any]:
    """A score as `results.json` holds it; JSON has no infinity."""
    values = asdict(result)
    for name in ("value", "low", "high"):
        if values[name] is not None and not math.isfinite(values[name]):
            values[name] = None
    return values


def from_json(values: dict[str, Any]) -> Result:
    """The inverse of `as_json`."""
    value, low, high = (values[name] for name in ("value", "low", "high"))
    if value is None:
        value = math.inf
    if high is None and (low is not None or value == math.inf) and not values["interval"].startswith("none"):
        low, high = (math.inf if low is None else low), math.inf
    return Result(**{**values, "value": value, "low": low, "high": high})


@dataclass(frozen=True)
class Failure:
    """Scores that could not be made.

    Attributes:
        name: of the scores, without the metric: `translation/wmt`, `benchmark/piqa`, `samples/prompts`.
        reason: one message.
        bug: whether it is a fault of the program, not of the user's.
    """

    name: str
    reason: str
    bug: bool = False


class ScoresFailed(ValueError):
    """Some scores could not be made. `saved`: `results.json` holds the others; else none could be made."""

    def __init__(self, message: str, saved: bool) -> None:
        super().__init__(message)
        self.saved = saved


class ScoresBroken(RuntimeError):
    """As `ScoresFailed`, by a fault of the program."""

    def __init__(self, message: str, saved: bool) -> None:
        super().__init__(message)
        self.saved = saved


@dataclass(frozen=True)
class Sample:
    """Generated text.

    Attributes:
        kind: `prompt` (the recipe's), `document` (the beginning of a held-out one) or `translation` (of `prompt`).
        reference: how the document really goes on, or how a person translated it.
    """

    kind: str
    title: str
    prompt: str
    text: str
    settings: str
    reference: str | None = None


@dataclass(frozen=True)
class Results:
    """Everything `results.json` holds.

    Attributes:
        fingerprint: of all that went in (checkpoint, evaluation settings, contents of the sets): decides skipping.
        checkpoint: name, step and fingerprint of the checkpoint, and `tokens` that it was trained on.
        model: family, parameters, vocabulary, context.
        data: counts of the data manifest: tokens, documents, bytes by split; `mixture`: the table of shares.
        funnel: rows of the data funnel.
        lineage: name -> file or fingerprint, from data to results.
        versions: package -> version.
        recipe: what the scores were made with: the checkpoint's settings, and the evaluation's of that time; secrets
            masked.
        chosen: how the checkpoint was chosen (`step`, `best`; neither: the newest), and `overrides` of that time.
        failures: scores that could not be made, each with the reason; the same evaluation tries these again.
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

    def save(self, run: Path) -> Path:
        """Writes `results.json` into the run directory, atomically."""
        target = run / RESULTS
        values = {**asdict(self), "results": [as_json(result) for result in self.results]}
        write_json(target, {"schema": SCHEMA, **values})
        return target

    def by_name(self) -> dict[str, Result]:
        """The scores by name, in order."""
        return {result.name: result for result in self.results}


def load_results(run: Path) -> Results:
    """Reads `results.json` of a run directory.

    Raises:
        ValueError: it is absent, not JSON, or of another schema.
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
    return Results(**values)

"""The outcome of an evaluation: `results.json`, of which the page, the summary and the gate are renderings."""

from __future__ import annotations

import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from configs.files import read_json, write_json

SCHEMA = 1
RESULTS_NAME = "results.json"


@dataclass(frozen=True)
class Result:
    """One score, with what is needed to trust it.

    Attributes:
        name: `part/set/metric`, such as `perplexity/heldout/bits_per_byte`.
        low, high: 95% interval; both None where nothing can be said (a single unit).
        n: how many units stand behind the value: documents, pairs, items.
        unit: of the value.
        interval: how the interval was made.
        chance: score of blind guessing, where it is known.
        signature: settings that must be equal for scores to be comparable (sacrebleu's, for instance).
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

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(
                f"{self.name} is {self.value}: the checkpoint gives no finite probabilities. Did training diverge? "
                "See metrics.jsonl, and score an earlier checkpoint: replica eval RUN --step N, or --best."
            )


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

    def save(self, run: Path) -> Path:
        """Writes `results.json` into the run directory, atomically."""
        target = run / RESULTS_NAME
        write_json(target, {"schema": SCHEMA, **asdict(self)})
        return target

    def by_name(self) -> dict[str, Result]:
        """The scores by name, in order."""
        return {result.name: result for result in self.results}


def load_results(run: Path) -> Results:
    """Reads `results.json` of a run directory.

    Raises:
        ValueError: it is absent, not JSON, or of another schema.
    """
    path = run / RESULTS_NAME
    if not path.is_file():
        raise ValueError(f"{run} has no {RESULTS_NAME}: evaluate the run first with `replica eval {run}`")
    raw = read_json(path)
    names = {one.name for one in fields(Results)}
    needed = {one.name for one in fields(Results) if one.default_factory is MISSING}
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA or needed - raw.keys():
        raise ValueError(f"{path} was written by another version; make it again with `replica eval {run}`")
    values = {name: raw[name] for name in names & raw.keys()}
    values["results"] = [Result(**item) for item in raw["results"]]
    values["samples"] = [Sample(**item) for item in raw["samples"]]
    return Results(**values)

"""Scores an evaluation part by part. Each part is stored separately, and a failure does not affect the others.

Scores are stored in `scores/` of the run with the fingerprint of a part's inputs. A part with a matching fingerprint is
not scored again.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from configs.common.exit_codes import explain
from configs.common.files import fingerprint, read_json, write_json
from configs.common.notices import say
from eval.results import Failure, Result, Sample, as_json, from_json

DIRECTORY = "scores"

Scored = tuple[list[Result], list[Sample]]


@dataclass(frozen=True)
class Part:
    """One part of an evaluation.

    Attributes:
        name: prefix of its scores' names, such as `translation/wmt`.
        inputs: everything that affects its scores, as JSON.
        work: computes the scores.
    """

    name: str
    inputs: Any
    work: Callable[[], Scored]

    def file(self, directory: Path) -> Path:
        """Returns the file of its scores. The file name is safe for any part name."""
        readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", self.name)[:80]
        return directory / f"{readable}-{fingerprint(self.name)[:8]}.json"


@dataclass
class Outcome:
    """Scores and failures of the parts, in their order."""

    results: list[Result] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def add(self, scored: Scored) -> None:
        """Adds scores. If two parts give the same score (a task alone and in a group), the first is used."""
        known = {result.name for result in self.results}
        self.results += [result for result in scored[0] if result.name not in known]
        self.samples += scored[1]


def score_parts(parts: Iterable[Part], directory: Path, again: bool = False) -> Outcome:
    """Scores the parts that have no stored scores. A failure is printed, and the next part follows.

    Args:
        parts: the parts, in order.
        directory: directory of stored scores; created when needed.
        again: score parts with stored scores again.
    """
    outcome = Outcome()
    for part in parts:
        stored = None if again else _kept(part, directory)
        try:
            scored = stored if stored is not None else part.work()
        except Exception as error:  # no failure of one part may prevent the others
            outcome.failures.append(_failure(part.name, error))
            continue
        if stored is None:
            _keep(part, directory, scored)
        outcome.add(scored)
    return outcome


def _failure(name: str, error: Exception) -> Failure:
    reason = explain(error)
    if reason is None:
        traceback.print_exception(error)
    failure = Failure(name, reason or f"{type(error).__name__}: {error}", bug=reason is None)
    say(f"{name} failed: {failure.reason}")
    return failure


def _kept(part: Part, directory: Path) -> Scored | None:
    try:
        content = read_json(part.file(directory))
        if content["fingerprint"] != fingerprint(part.inputs):
            return None
        return [from_json(item) for item in content["results"]], [Sample(**item) for item in content["samples"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # missing, damaged or of another version: score it again


def stored_results(directory: Path) -> list[Result]:
    """Reads all stored scores of a run, with their items; damaged files are left out."""
    found: list[Result] = []
    for path in sorted(directory.glob("*.json")):
        try:
            found += [from_json(item) for item in read_json(path)["results"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _keep(part: Part, directory: Path, scored: Scored) -> None:
    results, samples = scored
    content = {
        "results": [as_json(result, with_items=True) for result in results],
        "samples": [asdict(sample) for sample in samples],
    }
    write_json(part.file(directory), {"name": part.name, "fingerprint": fingerprint(part.inputs), **content})

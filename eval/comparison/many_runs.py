"""Compares any number of runs with one of them, on the same items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.comparison.paired import SAMPLES, Scores, adjusted_among, compare_scores, question_of
from eval.results import Change


@dataclass(frozen=True)
class Comparison:
    """Runs compared with a reference.

    Attributes:
        runs: all runs, the reference among them, in the order of the page.
        reference: the run that the others are compared with.
        changes: label of a run -> its scores against the reference's, with Holm's method over all runs and scores.
    """

    runs: list[Scores]
    reference: Scores
    changes: dict[str, list[Change]]

    def counted(self, label: str) -> Counter[str]:
        """Counts the verdicts of a run. The scores of a perplexity set, the same in several units, count once."""
        found: dict[tuple[str, ...], str] = {}
        for change in self.changes[label]:
            question = question_of(change)
            if change.verdict != "incomparable" or question not in found:
                found[question] = change.verdict
        return Counter(found.values())

    @property
    def tested(self) -> int:
        """Number of differences that Holm's method ran over."""
        return len(
            {
                (label, *question_of(change))
                for label, changes in self.changes.items()
                for change in changes
                if change.p is not None
            }
        )


def compare(runs: Sequence[Path], names: Sequence[str] | None = None, reference: int = 0) -> Comparison:
    """Compares the scores that each run has in common with the reference.

    Args:
        runs: run directories, or directories with the `results.json` and `scores/*.items.parquet` of one.
        names: how the runs are called, such as `RUN:STAGE`; None: by their directories.
        reference: number of the run that the others are compared with.

    Raises:
        ValueError: for fewer than two runs, one given twice, one without results, or without a score in common.
    """
    if len(runs) < 2:
        raise ValueError("name two runs or more to compare: replica compare RUN RUN …")
    places = [run.resolve() for run in runs]
    if twice := [run for run, count in Counter(places).items() if count > 1]:
        raise ValueError(f"{twice[0]} is given twice; name each run once")
    scores = [Scores.read(run, label) for run, label in zip(runs, _labels(places, names), strict=True)]
    against = scores[reference]
    changes = {one.label: compare_scores(one, against, SAMPLES) for one in scores if one is not against}
    if alone := [label for label, found in changes.items() if not found]:
        raise ValueError(
            f"{alone[0]} has no score in common with {against.label}; evaluate both on the same sets and tasks"
        )
    return Comparison(scores, against, adjusted_among(changes, against.results.by_name()))


def _labels(places: Sequence[Path], names: Sequence[str] | None) -> list[str]:
    """Returns a name for each run: its directory's, with those above it where two have the same."""
    given = [place.name for place in places]
    if names:  # `.` and `..` are no names
        given = [
            own if (own := Path(name).name).strip(".") else place for name, place in zip(names, given, strict=True)
        ]
    labels, depth = list(given), 1
    while len(set(labels)) < len(labels) and depth < 8:
        depth += 1
        seen = Counter(labels)
        labels = [
            "/".join([*place.parts[-depth:-1], name]) if seen[label] > 1 else label
            for label, name, place in zip(labels, given, places, strict=True)
        ]
    return labels

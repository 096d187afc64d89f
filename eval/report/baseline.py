"""Compares a run with its baseline, item by item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.common.layout import RESULTS, STAGES
from configs.common.rendering import score
from configs.schema.recipe import Recipe, find_run
from configs.schema.stage_recipe import BASE
from eval.comparison.paired import Scores, adjusted, compare_scores, is_of_model
from eval.comparison.scored_items import ScoredItems
from eval.results import Change, Result, Results


@dataclass(frozen=True)
class Baseline:
    """A run and what it is compared with.

    Attributes:
        run: directory of the run, with its `results`.
        other: directory of the baseline.
        samples: number of bootstrap resamples.
    """

    run: Path
    results: Results
    other: Path
    samples: int

    @property
    def label(self) -> str:
        """How pages call the baseline."""
        return self.other.resolve().name

    def all_changes(self) -> list[Change]:
        """Compares all scores that both have, with Holm's method over them.

        Raises:
            ValueError: when they have none in common.
        """
        ours, theirs = self._scores(BASE)
        changes = compare_scores(ours, theirs, self.samples)
        if not changes:
            raise ValueError(
                "the run and its baseline have no score in common; evaluate both on the same sets and tasks, or leave "
                "the baseline out"
            )
        return adjusted(changes, ours.results.by_name())

    def changes(self, named: Sequence[tuple[str, str]]) -> dict[str, Change | str]:
        """Compares chosen scores, with Holm's method over these alone: they were asked for beforehand.

        Args:
            named: stage (or `base`) and name of each score.

        Returns:
            `STAGE:NAME` -> what was found, or why there is nothing to compare with.
        """
        found: dict[str, Change | str] = {}
        changes: list[Change] = []
        known: dict[str, Result] = {}
        for stage in dict.fromkeys(stage for stage, _ in named):
            wanted = [name for of, name in named if of == stage]
            for name in wanted:
                found[f"{stage}:{name}"] = self._not_compared(name)
            if stage != BASE and not (self.other / STAGES / stage / RESULTS).is_file():
                continue
            if stage != BASE and not (self.run / STAGES / stage / RESULTS).is_file():
                continue
            ours, theirs = self._scores(stage)
            known |= ours.results.by_name()
            changes += compare_scores(ours, theirs, self.samples, wanted)
        for change in adjusted(changes, known):
            stage = change.against.removeprefix(self.label).removeprefix(":") or BASE
            found[f"{stage}:{change.name}"] = change
        return found

    def _not_compared(self, name: str) -> str:
        """Says of a score why there is nothing to compare, before the baseline's scores have been looked at."""
        own = self.results.by_name().get(name)
        if own is not None and not is_of_model(own):
            return "it is no score of a model, but of a program or a control beside it: compare the model's own"
        return f"the baseline {self.label} has no such score"

    def _scores(self, stage: str) -> tuple[Scores, Scores]:
        if stage == BASE:
            ours = Scores(self.run.resolve().name, self.run, self.results, ScoredItems(self.run, self.results))
            return ours, Scores.read(self.other, self.label)
        own = Scores.read(self.run / STAGES / stage, f"{self.run.resolve().name}:{stage}")
        return own, Scores.read(self.other / STAGES / stage, f"{self.label}:{stage}")


def baseline_of(recipe: Recipe, given: Path | None) -> Path | None:
    """Returns the directory to compare with: the given one, or `report.baseline`."""
    if given is not None or recipe.report.baseline is None:
        return given
    return find_run(recipe.report.baseline)


def read_baseline(recipe: Recipe, run: Path, results: Results, given: Path | None) -> Baseline | None:
    """Returns what a run is compared with; None if nothing is given.

    Args:
        recipe: of the run.
        run: directory of the run, with its `results`.
        given: directory of the baseline; None: `report.baseline` of the recipe.
    """
    other = baseline_of(recipe, given)
    return None if other is None else Baseline(run, results, other, recipe.evaluation.bootstrap_samples)


def sentence(change: Change) -> str:
    """Says what a comparison found: the difference with its interval, p, the items and the test."""
    text = f"{change.verdict}: {score(change.after)} against {score(change.before)}"
    if change.low is not None and change.high is not None:
        text += f", difference {change.after - change.before:+.3g} [{change.low:+.3g}, {change.high:+.3g}]"
    if change.adjusted is not None:
        text += f", p = {change.adjusted:.2g}"
    text += f", {change.n:,} items" if change.n else ""
    return f"{text}; {change.method}" + (f"; {change.reason}" if change.reason else "")

"""Scores a checkpoint of a run and writes `results.json`. Unchanged scores are reused."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.common.layout import RESULTS
from configs.common.locks import locked
from configs.common.notices import say
from configs.safety.hide_secrets import mask as masked
from configs.safety.hide_secrets import mask_urls
from configs.schema.recipe import Recipe, load_run
from data_prep.tokens.vocab import Vocab
from eval.aggregate import add_core
from eval.codec.codec_parts import codec_parts
from eval.codec.scores import prequential_results
from eval.comparison.paired import Scores, adjusted, compare_scores
from eval.comparison.scored_items import ScoredItems
from eval.contamination import facts, identity
from eval.contamination import load as load_touched
from eval.currency import scored_recipe, scores_fingerprint, scoring_code, set_identities
from eval.lineage import checkpoint_facts, data_facts, lineage, model_facts, package_versions
from eval.parts import DIRECTORY as DIRECTORY_OF_SCORES
from eval.parts import Outcome, score_parts
from eval.people.part import current_sessions, people_parts, people_section
from eval.reading.journal import DIRECTORY as PARTIAL
from eval.reading.journal import Journal
from eval.reading.kept import KeptReader
from eval.reading.opening import HERE, Place, open_reader
from eval.reading.ranked import RankedReader
from eval.remarks import tell
from eval.results import Change, Failure, Result, Results, ScoresBroken, ScoresFailed
from eval.scorer import Scorer
from eval.stage_facts import stage_of
from pretrain.checkpoint.choice import Choice, choose_checkpoint
from pretrain.checkpoint.manifest import CheckpointInfo
from pretrain.parallel.lockstep import Lockstep

if TYPE_CHECKING:
    from data_prep.decontamination.decontaminate import Touched


def evaluate(
    run: Path,
    overrides: Sequence[str] = (),
    progress: bool = True,
    choice: Choice | None = None,
    again: bool = False,
    place: Place = HERE,
) -> Path:
    """Scores a checkpoint of a run and writes `results.json`; returns its path.

    Stored scores with the same inputs (see `eval/parts.py`) are reused. Answers of an evaluation that was interrupted
    are reused too (see `eval/reading/journal.py`).

    Args:
        run: the run directory.
        overrides: settings `evaluation.…=value` for this evaluation only.
        progress: show progress bars.
        choice: the checkpoint to score; None: the newest.
        again: do not reuse stored scores.
        place: the ranks that evaluate together, and this one's device. Every rank calls this alike; rank 0 writes.

    Raises:
        ValueError: when there is no such checkpoint, it is damaged, or another process scores the run.
        ScoresFailed: when some scores failed, for example because a set is missing. `results.json` names them and has
            the others. If all failed, `results.json` is not changed.
        ScoresBroken: like `ScoresFailed`, but caused by a bug.
    """
    ranks = place.ranks
    with ranks.together("the evaluation"):
        load_run(run)  # gives a clear error for a directory that is not a run
        choice = choice or Choice()
        checkpoint = choose_checkpoint(run, choice)
        ranks.exchange(None, f"{checkpoint.directory.name} with fingerprint {checkpoint.fingerprint}")
        recipe = scored_recipe(run, checkpoint, overrides)
        with _held_for_scoring(run, ranks):
            evaluation = _Evaluation(run, choice, list(overrides), checkpoint, recipe, place)
            return evaluation.score(progress and ranks.is_main, again)


@contextmanager
def _held_for_scoring(run: Path, ranks: Lockstep) -> Iterator[None]:
    """Holds the lock of a run's scores on rank 0. A rank of an evaluation that was killed gets some time to end."""
    if not ranks.is_main:
        yield
        return
    file = run / DIRECTORY_OF_SCORES / ".lock"
    file.parent.mkdir(exist_ok=True)
    busy = f"another replica command scores {run}; wait for it, or end it"
    wait = float(os.environ.get("REPLICA_GRACE", 60))
    with locked(file, busy, wait, lambda: say(f"{run} is being scored by another command: waiting up to {wait:g} s")):
        yield


@dataclass(frozen=True)
class _Evaluation:
    """One evaluation of a checkpoint by the recipe's `evaluation` section."""

    run: Path
    choice: Choice
    overrides: list[str]
    checkpoint: CheckpointInfo
    recipe: Recipe
    place: Place

    def score(self, progress: bool, again: bool) -> Path:
        """Scores all parts and writes `results.json`; see `evaluate`."""
        recipe, checkpoint, ranks = self.recipe, self.checkpoint, self.place.ranks
        sets = ranks.of_main(lambda: set_identities(recipe, missing=True), "identities of the sets")
        began = time.monotonic()
        vocab = Vocab.load(checkpoint.tokenizer)
        touched = load_touched(recipe, checkpoint)
        common = {"code": scoring_code(), "checkpoint": checkpoint.fingerprint, "touched": identity(recipe, checkpoint)}
        directory = self.run / DIRECTORY_OF_SCORES
        journal = Journal(directory / PARTIAL, ranks)
        reader = KeptReader(RankedReader(open_reader(checkpoint, vocab, recipe, self.place), ranks), journal, ranks)
        parts = Scorer(recipe, reader, vocab, touched, common, sets, progress, ranks=ranks).parts()
        judged = ranks.of_main(lambda: current_sessions(self.run, checkpoint.fingerprint), "what people judged")
        parts += codec_parts(recipe, checkpoint, sets, common, ranks, progress)
        parts += people_parts(self.run, judged, sets, common, recipe.evaluation.bootstrap_samples)
        scored = score_parts(parts, directory, again, ranks, journal)
        if parts and len(scored.failures) == len(parts):
            raise _complaint(scored.failures, None)
        add_core(recipe.evaluation.core, scored)
        scored.results += prequential_results(checkpoint)
        if ranks.is_main:
            tell(scored.results)
        path = ranks.of_main(lambda: self._results(scored, sets, vocab, touched, began).save(self.run), "the results")
        if scored.failures:
            raise _complaint(scored.failures, path)
        return path

    def _results(
        self, scored: Outcome, sets: dict[str, Any], vocab: Vocab, touched: Touched | None, began: float
    ) -> Results:
        recipe, checkpoint = self.recipe, self.checkpoint
        data, funnel = data_facts(recipe, checkpoint)
        data |= facts(touched)
        outcome = scores_fingerprint(recipe, checkpoint, sets)
        results = Results(
            fingerprint=outcome,
            checkpoint=checkpoint_facts(checkpoint),
            recipe_fingerprint=recipe.fingerprint(),
            data_fingerprint=checkpoint.data_fingerprint,
            model=model_facts(checkpoint.recipe.model, vocab),
            data=data,
            results=_in_order(scored.results),
            samples=scored.samples,
            failures=scored.failures,
            items=scored.items,
            people=people_section(self.run, checkpoint.fingerprint, {failure.name for failure in scored.failures}),
            funnel=funnel,
            lineage=lineage(recipe, checkpoint, vocab, sets, outcome, scored.results),
            versions=package_versions(),
            seconds=round(time.monotonic() - began, 3),
            recipe=masked(recipe.model_dump(mode="json")),
            chosen={
                "step": self.choice.step,
                "best": self.choice.best,
                "overrides": [mask_urls(text) for text in self.overrides],
                "contamination": identity(recipe, checkpoint),
            },
        )
        stage, changes = _beside_parent(recipe, results, self.run)
        return replace(results, stage=stage, changes=changes)


def _beside_parent(recipe: Recipe, results: Results, run: Path) -> tuple[dict[str, Any], list[Change]]:
    """Returns the entries of `results.json` on a stage, and its scores compared with those of its parent.

    Args:
        recipe: of the stage.
        results: its scores.
        run: its run directory, which has their items.
    """
    stage = stage_of(recipe)
    if stage is None:
        return {}, []
    known = {"name": stage.name, "kind": stage.kind, "parent": stage.parent}
    if not (stage.parent_run / RESULTS).is_file():
        return {**known, "parent_results": None}, []
    before = Scores.read(stage.parent_run, stage.parent)
    after = Scores(stage.name, run, results, ScoredItems(run, results))
    changes = compare_scores(after, before, recipe.evaluation.bootstrap_samples)
    return {**known, "parent_results": before.results.fingerprint}, adjusted(changes, results.by_name())


def _in_order(results: list[Result]) -> list[Result]:
    """Sorts results for the report: benchmarks, which are scored first, come last."""
    return sorted(results, key=lambda result: result.named.kind == "benchmark")


def _complaint(failures: Sequence[Failure], saved: Path | None) -> ScoresFailed | ScoresBroken:
    by_reason: dict[str, list[str]] = {}
    for failure in failures:
        by_reason.setdefault(failure.reason, []).append(failure.name)
    reasons = [(reason, ", ".join(names)) for reason, names in by_reason.items()]
    consequence = f"{saved} holds the others, the same command tries these again" if saved else "none is left"
    kind = ScoresBroken if any(failure.bug for failure in failures) else ScoresFailed
    if len(reasons) == 1:
        return kind(f"{reasons[0][0]} (not scored: {reasons[0][1]}; {consequence})", saved is not None)
    listed = "\n".join(f"  - {names}: {reason}" for reason, names in reasons)
    return kind(f"these scores could not be made; {consequence}:\n{listed}", saved is not None)

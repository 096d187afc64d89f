"""Scores a checkpoint of a run and writes `results.json`. Unchanged scores are reused."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from configs.common.layout import RESULTS
from configs.safety.hide_secrets import mask as masked
from configs.safety.hide_secrets import mask_urls
from configs.schema.objectives import RewardModelling
from configs.schema.recipe import Recipe, load_run
from data_prep.tokens.vocab import Vocab
from eval.comparison.paired import compare_paired
from eval.contamination import facts, identity
from eval.contamination import load as load_touched
from eval.currency import scored_recipe, scores_fingerprint, scoring_code, set_identities
from eval.lineage import checkpoint_facts, data_facts, lineage, model_facts, package_versions
from eval.parts import DIRECTORY as DIRECTORY_OF_SCORES
from eval.parts import score_parts, stored_results
from eval.reading.reader import LocalReader, RowScorer
from eval.results import Change, Failure, Result, Results, ScoresBroken, ScoresFailed, load_results
from eval.scorer import Scorer
from eval.stage_facts import stage_of
from pretrain.checkpoint.choice import Choice, choose_checkpoint
from pretrain.checkpoint.load_weights import load_weights
from pretrain.checkpoint.manifest import CheckpointInfo
from pretrain.model.transformer import Transformer


def evaluate(
    run: Path,
    overrides: Sequence[str] = (),
    progress: bool = True,
    choice: Choice | None = None,
    again: bool = False,
) -> Path:
    """Scores a checkpoint of a run and writes `results.json`; returns its path.

    Stored scores with the same inputs (see `eval/parts.py`) are reused.

    Args:
        run: the run directory.
        overrides: settings `evaluation.…=value` for this evaluation only.
        progress: show progress bars.
        choice: the checkpoint to score; None: the newest.
        again: do not reuse stored scores.

    Raises:
        ValueError: when there is no such checkpoint, or it is damaged.
        ScoresFailed: when some scores failed, for example because a set is missing. `results.json` names them and has
            the others. If all failed, `results.json` is not changed.
        ScoresBroken: like `ScoresFailed`, but caused by a bug.
    """
    load_run(run)  # gives a clear error for a directory that is not a run
    choice = choice or Choice()
    checkpoint = choose_checkpoint(run, choice)
    recipe = scored_recipe(run, checkpoint, overrides)
    sets = set_identities(recipe, missing=True)
    began = time.monotonic()
    vocab, model = Vocab.load(checkpoint.tokenizer), _to_device(load_weights(checkpoint))
    touched = load_touched(recipe, checkpoint)
    common = {"code": scoring_code(), "checkpoint": checkpoint.fingerprint, "touched": identity(recipe, checkpoint)}
    rewards = _reward_scorer(checkpoint, vocab, next(model.parameters()).device)
    reader = LocalReader(model, vocab.size, recipe.evaluation.batch_size, rewards)
    parts = Scorer(recipe, reader, vocab, touched, common, sets, progress).parts()
    scored = score_parts(parts, run / DIRECTORY_OF_SCORES, again)
    if parts and len(scored.failures) == len(parts):
        raise _complaint(scored.failures, None)
    data, funnel = data_facts(recipe, checkpoint)
    data |= facts(touched)
    stage, changes = _beside_parent(recipe, scored.results)
    outcome = scores_fingerprint(recipe, checkpoint, sets)
    path = Results(
        fingerprint=outcome,
        checkpoint=checkpoint_facts(checkpoint),
        recipe_fingerprint=recipe.fingerprint(),
        data_fingerprint=checkpoint.data_fingerprint,
        model=model_facts(model, vocab),
        data=data,
        results=_in_order(scored.results),
        samples=scored.samples,
        failures=scored.failures,
        items=scored.items,
        funnel=funnel,
        lineage=lineage(recipe, checkpoint, vocab, sets, outcome),
        versions=package_versions(),
        seconds=round(time.monotonic() - began, 3),
        recipe=masked(recipe.model_dump(mode="json")),
        chosen={
            "step": choice.step,
            "best": choice.best,
            "overrides": [mask_urls(text) for text in overrides],
            "contamination": identity(recipe, checkpoint),
        },
        stage=stage,
        changes=changes,
    ).save(run)
    if scored.failures:
        raise _complaint(scored.failures, path)
    return path


def _beside_parent(recipe: Recipe, results: list[Result]) -> tuple[dict[str, Any], list[Change]]:
    """Returns the entries of `results.json` on a stage, and its scores compared with those of its parent."""
    stage = stage_of(recipe)
    if stage is None:
        return {}, []
    known = {"name": stage.name, "kind": stage.kind, "parent": stage.parent}
    if not (stage.parent_run / RESULTS).is_file():
        return {**known, "parent_results": None}, []
    before = load_results(stage.parent_run)
    shown = {(result.name, result.value, result.set) for result in before.results}
    stored = stored_results(stage.parent_run / DIRECTORY_OF_SCORES)
    earlier = [result for result in stored if (result.name, result.value, result.set) in shown]
    changes = compare_paired(results, earlier, stage.parent, recipe.evaluation.bootstrap_samples)
    return {**known, "parent_results": before.fingerprint}, changes


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


def _reward_scorer(checkpoint: CheckpointInfo, vocab: Vocab, device: torch.device) -> RowScorer | None:
    """Returns what scores rows of a reward model; None for other models."""
    if not isinstance(checkpoint.recipe.train.objective, RewardModelling):
        return None
    from pretrain.objectives.reward_scorer import RewardScorer, load_reward_model

    return RewardScorer(load_reward_model(checkpoint).to(device), vocab)


def _to_device(model: Transformer) -> Transformer:
    return model.to("cuda") if torch.cuda.is_available() else model

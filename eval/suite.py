"""All that is scored of a run: checkpoint in, `results.json` out; nothing is done twice for the same content."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.common.files import fingerprint, read_json
from configs.safety.hide_secrets import mask as masked
from configs.safety.hide_secrets import mask_urls
from configs.schema.recipe import RESOLVED_NAME, Recipe, RecipeError, load, load_run
from data_prep.sources.places import Place, expand, place_identity
from eval.parts import DIRECTORY as DIRECTORY_OF_SCORES
from eval.parts import score_parts
from eval.results import RESULTS_NAME, Failure, Result, Results, ScoresBroken, ScoresFailed
from pretrain.checkpoint.compatible import CHANGES
from pretrain.checkpoint.manifest import DIRECTORY, CheckpointInfo, Choice, latest

if TYPE_CHECKING:
    from data_prep.tokens.vocab import Vocab
    from pretrain.model.transformer import Transformer

# Raise it when scores change for the same inputs: earlier results are then made again.
CODE_VERSION = 4
_PACKAGES = (
    "torch", "numpy", "tokenizers", "deepspeed", "ray", "datasets", "transformers", "lm_eval", "sacrebleu", "zstandard",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- skipping
def _scored(run: Path, checkpoint: CheckpointInfo, overrides: Sequence[str] = ()) -> Recipe:
    """What a checkpoint is scored by: the settings that it was trained with, and the run's evaluation and report."""
    if foreign := [text for text in overrides if not text.startswith("evaluation.")]:
        raise RecipeError(f"override `{foreign[0]}`: only `evaluation.…` can be changed for a trained run")
    own = load_run(run)
    evaluation = load(run / RESOLVED_NAME, overrides).evaluation if overrides else own.evaluation
    made = checkpoint.recipe
    data = made.data.model_copy(update={"directory": own.data.directory})
    return made.model_copy(update={"out": own.out, "data": data, "evaluation": evaluation, "report": own.report})


def _set_identities(recipe: Recipe, missing: bool = False) -> dict[str, Any]:
    """Name -> identity of the content of every file that is scored.

    Raises:
        ValueError: a file that is missing; not with `missing`, where its set has no files then.
    """
    section = recipe.evaluation
    files: dict[str, Sequence[Place]] = {}
    for kind, items in (("perplexity", section.perplexity), ("translation", section.translation)):
        for item in items:
            try:
                files[f"{kind} set {item.name}"] = expand(item.path)
            except ValueError:
                if not missing:
                    raise
                files[f"{kind} set {item.name}"] = []
    if section.benchmarks.tasks and section.benchmarks.include_path is not None:
        files["benchmark tasks"] = sorted(
            path for path in Path(section.benchmarks.include_path).rglob("*") if path.is_file()
        )
    return {name: [place_identity(path) for path in paths] for name, paths in files.items()}


def _fingerprint(
    recipe: Recipe, checkpoint: CheckpointInfo, sets: dict[str, Any], contamination: str | None = None
) -> str:
    """Of everything that decides a score. Where the files lie and how large batches are does not.

    `contamination`: what its fingerprint was, for when the data is no longer there.
    """
    from eval.contamination import identity

    settings = recipe.evaluation.model_dump(
        mode="json", exclude={"batch_size": True, "benchmarks": {"include_path", "batch_size"}}
    )
    for item in [*settings["perplexity"], *settings["translation"]]:
        del item["path"]
    inputs = {
        "code": CODE_VERSION,
        "checkpoint": checkpoint.fingerprint,
        "settings": settings,
        "normalize": recipe.data.normalize.model_dump(mode="json"),
        "seed": recipe.seed,
        "sets": sets,
    }
    if compared := identity(recipe, checkpoint) or contamination:
        inputs["contamination"] = compared
    return fingerprint(inputs)


def is_current(run: Path) -> bool:
    """Whether `results.json` holds for the newest checkpoint, the recipe's evaluation and the contents of its sets.

    Scores that could not be made are tried again: then it does not.
    """
    if not (run / RESULTS_NAME).is_file():
        return False
    checkpoint = Choice().find(run)
    recipe = _scored(run, checkpoint)
    wanted = _fingerprint(recipe, checkpoint, _set_identities(recipe, missing=True))
    found = read_json(run / RESULTS_NAME)
    return bool(found.get("fingerprint") == wanted and not found.get("failures"))


def check_current(run: Path, results: Results) -> None:
    """Raises `ValueError` when the scores are not those of the checkpoint that they are taken for.

    That is the one chosen when they were made, by a step, as the best or as the newest. Where nothing can be compared,
    because no checkpoint or no set is there any more, the scores stand.
    """
    step, best = results.chosen.get("step"), bool(results.chosen.get("best"))
    choice, name = Choice(step, best), results.checkpoint["name"]
    if latest(run) is None or (step is not None and not (run / DIRECTORY / name).is_dir()):
        return
    checkpoint = choice.find(run)
    again = f"score it first with `replica eval {run}{f' --step {step}' if step else ' --best' if best else ''}`"
    if checkpoint.fingerprint != results.checkpoint["fingerprint"]:
        other = f", or keep to {name} with `replica eval {run} --step {results.checkpoint['step']}`"
        raise ValueError(
            f"{run / RESULTS_NAME} holds the scores of {name}, but {checkpoint.directory.name} is {choice} checkpoint "
            f"now; {again}{other if (run / DIRECTORY / name).is_dir() else ''}"
        )
    if results.chosen.get("overrides"):
        return  # settings of that one time, which the page shows
    recipe = _scored(run, checkpoint)
    try:
        sets = _set_identities(recipe)
    except ValueError:
        return
    known = results.chosen.get("contamination")
    if results.fingerprint != _fingerprint(recipe, checkpoint, sets, known):
        raise ValueError(
            f"{run / RESULTS_NAME} was made with other settings than `evaluation` of {run / RESOLVED_NAME}, from sets "
            f"that have changed since, or by another version of Replica; {again}"
        )


# ----------------------------------------------------------------------------------------------------------- evaluating
def evaluate(
    run: Path,
    overrides: Sequence[str] = (),
    progress: bool = True,
    choice: Choice | None = None,
    again: bool = False,
) -> Path:
    """Scores a checkpoint of a run and writes `results.json`; returns its path.

    Scores that are kept from before (see `eval/parts.py`) are not made again.

    Args:
        run: the run directory.
        overrides: `evaluation.…=value` settings for this time.
        progress: show bars.
        choice: of the checkpoint; None: the newest.
        again: make the kept scores again too.

    Raises:
        ValueError: no such checkpoint, or a broken one.
        ScoresFailed: some scores could not be made, such as those of a missing set; `results.json` names them beside
            the others. When none could be made, it stays as it was.
        ScoresBroken: as `ScoresFailed`, by a fault of the program.
    """
    load_run(run)  # what is no run directory is said to be none
    choice = choice or Choice()
    checkpoint = choice.find(run)
    recipe = _scored(run, checkpoint, overrides)
    sets = _set_identities(recipe, missing=True)
    from data_prep.tokens.vocab import Vocab
    from eval.contamination import facts, identity
    from eval.contamination import load as load_touched
    from eval.scorer import Scorer
    from pretrain.checkpoint.load_weights import load_weights

    began = time.monotonic()
    vocab, model = Vocab.load(checkpoint.tokenizer), _to_device(load_weights(checkpoint.directory))
    touched = load_touched(recipe, checkpoint)
    common = {"code": CODE_VERSION, "checkpoint": checkpoint.fingerprint, "touched": identity(recipe, checkpoint)}
    parts = Scorer(recipe, model, vocab, touched, common, sets, progress).parts()
    scored = score_parts(parts, run / DIRECTORY_OF_SCORES, again)
    if parts and len(scored.failures) == len(parts):
        raise _complaint(scored.failures, None)
    data, funnel = _data_facts(recipe, checkpoint)
    data |= facts(touched)
    outcome = _fingerprint(recipe, checkpoint, sets)
    path = Results(
        fingerprint=outcome,
        checkpoint=_checkpoint_facts(checkpoint),
        recipe_fingerprint=recipe.fingerprint(),
        data_fingerprint=checkpoint.data_fingerprint,
        model=_model_facts(model, vocab),
        data=data,
        results=_in_order(scored.results),
        samples=scored.samples,
        failures=scored.failures,
        funnel=funnel,
        lineage=_lineage(recipe, checkpoint, vocab, sets, outcome),
        versions=_versions(),
        seconds=round(time.monotonic() - began, 3),
        recipe=masked(recipe.model_dump(mode="json")),
        chosen={
            "step": choice.step,
            "best": choice.best,
            "overrides": [mask_urls(text) for text in overrides],
            "contamination": identity(recipe, checkpoint),
        },
    ).save(run)
    if scored.failures:
        raise _complaint(scored.failures, path)
    return path


def _in_order(results: list[Result]) -> list[Result]:
    """As the report tells them: benchmarks, which are scored first, come last."""
    return sorted(results, key=lambda result: result.name.startswith("benchmark/"))


def _complaint(failures: Sequence[Failure], saved: Path | None) -> ScoresFailed | ScoresBroken:
    by_reason: dict[str, list[str]] = {}
    for failure in failures:
        by_reason.setdefault(failure.reason, []).append(failure.name)
    said = [(reason, ", ".join(names)) for reason, names in by_reason.items()]
    left = f"{saved} holds the others, the same command tries these again" if saved else "none is left"
    kind = ScoresBroken if any(failure.bug for failure in failures) else ScoresFailed
    if len(said) == 1:
        return kind(f"{said[0][0]} (not scored: {said[0][1]}; {left})", saved is not None)
    listed = "\n".join(f"  - {names}: {reason}" for reason, names in said)
    return kind(f"these scores could not be made; {left}:\n{listed}", saved is not None)


def _to_device(model: Transformer) -> Transformer:
    import torch

    return model.to("cuda") if torch.cuda.is_available() else model


# ---------------------------------------------------------------------------------------------------------------- facts
def _model_facts(model: Transformer, vocab: Vocab) -> dict[str, Any]:
    config = model.config
    return {
        "family": config.family,
        "parameters": model.parameter_count().total,
        "layers": config.num_layers,
        "width": config.hidden_size,
        "context_length": config.context_length,
        "vocab_size": vocab.size,
    }


def _checkpoint_facts(checkpoint: CheckpointInfo) -> dict[str, Any]:
    return {
        "name": checkpoint.directory.name,
        "step": checkpoint.step,
        "fingerprint": checkpoint.fingerprint,
        "tokens": checkpoint.state.get("meter", {}).get("targets"),
    }


def _data_facts(recipe: Recipe, checkpoint: CheckpointInfo) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Counts, mixture and funnel of the data trained on; empty when the data is gone or is no longer the same."""
    from data_prep.tokens.shards import load_manifest
    from data_prep.work.stage import MANIFEST_NAME
    from pretrain.batches.mixture import mixture_table

    if not (recipe.data_directory / MANIFEST_NAME).is_file():
        return {}, []
    manifest = load_manifest(recipe.data_directory)
    if manifest.fingerprint != checkpoint.data_fingerprint:
        return {}, []
    counts: dict[str, Any] = {
        split: {key: sum(getattr(source, key) for source in sources) for key in ("documents", "tokens", "bytes")}
        for split, sources in (("train", manifest.train), ("validation", manifest.validation))
    }
    # The checkpoint's own recipe is what it was trained by.
    counts["mixture"] = mixture_table(checkpoint.recipe, manifest, checkpoint.step)
    return counts, manifest.funnel


def _lineage(
    recipe: Recipe, checkpoint: CheckpointInfo, vocab: Vocab, sets: dict[str, Any], outcome: str
) -> list[dict[str, Any]]:
    """What made the scores, in order, each with a fingerprint."""
    rows = [
        ("Recipe", recipe.fingerprint(), f"{recipe.name}, seed {recipe.seed}"),
        ("Training data", checkpoint.data_fingerprint, ", ".join(source.name for source in recipe.data.sources)),
        ("Tokenizer", vocab.fingerprint, f"{recipe.data.tokenizer.kind}, {vocab.size:,} tokens"),
        ("Checkpoint", checkpoint.fingerprint, f"{checkpoint.directory.name}, step {checkpoint.step:,}"),
    ]
    for name, identities in sets.items():
        total = sum(item["bytes"] for item in identities)
        files = f"{len(identities):,} file{'s' if len(identities) > 1 else ''}"
        rows.append((name[0].upper() + name[1:], fingerprint(identities), f"{files}, {total:,} bytes"))
    rows.append(("Results", outcome, "all of the above, and the settings of the evaluation"))
    for change in checkpoint.state.get(CHANGES, []):
        detail = f"after step {change['step']:,}: {change['before']}, then {change['after']}"
        rows.append((f"Changed {change['setting']}", "", detail))
    if commit := os.environ.get("GITHUB_SHA") or _commit():
        rows.append(("Code", commit, "git commit"))
    return [dict(zip(("name", "fingerprint", "detail"), row, strict=True)) for row in rows]


def _commit() -> str | None:
    """Commit of the checkout this code runs from, read from `.git` itself; None outside of one."""
    git = Path(__file__).resolve().parent.parent / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        return (
            (git / head.removeprefix("ref: ")).read_text(encoding="utf-8").strip() if head.startswith("ref: ") else head
        )
    except OSError:
        return None


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

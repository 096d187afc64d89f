"""Tells whether scores are current: same checkpoint, settings, sets and code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.common.files import fingerprint, read_json
from configs.common.layout import RESULTS
from configs.common.versions import code_version
from configs.schema.evaluation import Evaluation
from configs.schema.recipe import RESOLVED_NAME, Recipe, RecipeError, load, load_run
from configs.schema.stage_recipe import is_masked
from data_prep.sources.places import Location, expand, place_identity
from eval.people.part import outdated, votes_name
from eval.people.session import FILE, VOTES, sessions_of
from eval.results import Results
from eval.stage_facts import applicable, asks_base, fitting, role_of, stage_of
from pretrain.checkpoint.choice import Choice
from pretrain.checkpoint.manifest import DIRECTORY, CheckpointInfo, newest

# Code that affects scores; pages that show them are not part of it.
CODE = (
    *("eval/reading", "eval/pairs", "eval/information", "eval/aggregate", "eval/people"),
    *("eval/summaries", "eval/text_metrics", "eval/codec", "pretrain/coding/entropy"),
    *("eval/likelihood", "eval/generation", "eval/harness", "eval/scorer", "eval/contamination", "eval/statistics"),
    *("eval/results", "pretrain/model", "pretrain/checkpoint/load_weights", "data_prep/text", "data_prep/tokens"),
    *("data_prep/decontamination", "data_prep/documents/conversion", "data_prep/documents/document"),
    *("data_prep/extraction", "data_prep/readers", "eval/parts", "eval/items", "pretrain/sizes", "eval/stage_facts"),
    *("eval/preference_accuracy", "eval/chat_setting", "eval/comparison", "data_prep/chat", "pretrain/generation"),
    *(
        "pretrain/denoising",
        "pretrain/rewards",
        "pretrain/batches",
        "pretrain/objectives/reward_scorer",
        "pretrain/engine/loss_module",
    ),
    *("pretrain/objectives/reward_modelling", "pretrain/objectives/pair_sums", "pretrain/parallel/lockstep"),
)


def scoring_code() -> str:
    """Computes the digest of the code that affects scores."""
    return code_version(*CODE)


def scored_recipe(run: Path, checkpoint: CheckpointInfo, overrides: Sequence[str] = ()) -> Recipe:
    """Builds the recipe for scoring: the checkpoint's training settings with the run's evaluation, chat and report.

    Its evaluation has those sets alone that say something about the model, see `eval.stage_facts.applicable` and
    `fitting`.
    """
    if foreign := [text for text in overrides if not text.startswith("evaluation.")]:
        raise RecipeError(f"override `{foreign[0]}`: a trained run takes overrides of `evaluation.…` only")
    own = load_run(run)
    evaluation = load(run / RESOLVED_NAME, overrides).evaluation if overrides else own.evaluation
    trained = checkpoint.recipe
    data = trained.data.model_copy(update={"directory": own.data.directory})
    kept: dict[str, Any] = {
        "out": own.out,
        "data": data,
        "report": own.report,
        "chat": own.chat,
        "parents": own.parents,
    }
    role = role_of(trained.train.objective)
    section = applicable(evaluation, role, asks_base(own))
    in_chain = own.parents or any(map(is_masked, own.stages))
    kept["evaluation"] = fitting(section, trained.model.causal, role) if in_chain else section
    _refuse_dropped(overrides, evaluation, kept["evaluation"], str(run))
    return trained.model_copy(update=kept)


def _refuse_dropped(overrides: Sequence[str], asked: Evaluation, kept: Evaluation, run: str) -> None:
    """Raises `RecipeError` for an override that asks this model for what it cannot do, or what says nothing of it."""
    wanted, left = ({"evaluation": section.model_dump(mode="json")} for section in (asked, kept))
    for text in overrides:
        path = text.partition("=")[0]
        if _value_at(wanted, path) != _value_at(left, path):
            raise RecipeError(
                f"override `{text}`: the model of {run} cannot do all that this asks for, or it says nothing of it; "
                "leave it out, or give another stage, as in RUN:STAGE or RUN:base"
            )


def _value_at(values: Any, path: str) -> Any:
    for key in path.split("."):
        if isinstance(values, list):
            values = values[int(key)] if key.isdigit() and int(key) < len(values) else None
        else:
            values = values.get(key) if isinstance(values, dict) else None
    return values


def set_identities(recipe: Recipe, missing: bool = False) -> dict[str, Any]:
    """Maps the name of each set to the identities of its files' contents.

    Raises:
        ValueError: when a file is missing. With `missing`, its set is listed without files instead.
    """
    section = recipe.evaluation
    files: dict[str, Sequence[Location]] = {}
    kinds: dict[str, Sequence[Any]] = {
        "perplexity": section.perplexity,
        "translation": section.translation,
        "information": section.information,
        "summarization": section.summarization,
        "chat": section.chat,
        "preference": section.preference,
    }
    for kind, items in kinds.items():
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
    for directory in sessions_of(recipe.run_directory):
        files[votes_name(directory.name)] = [path for name in (FILE, VOTES) if (path := directory / name).is_file()]
    return {name: [place_identity(path) for path in paths] for name, paths in files.items()}


def scores_fingerprint(
    recipe: Recipe, checkpoint: CheckpointInfo, sets: dict[str, Any], contamination: str | None = None
) -> str:
    """Computes the fingerprint of everything that affects scores. Paths and batch sizes do not.

    `contamination`: earlier fingerprint of the comparison, in case the data no longer exists.
    """
    from eval.contamination import identity

    unneeded = dict.fromkeys(("batch_size", "batch_tokens", "divide_weights", "people"), True)
    settings = recipe.evaluation.model_dump(
        mode="json", exclude={**unneeded, "benchmarks": {"include_path", "batch_size"}}
    )
    for kind in ("perplexity", "translation", "summarization", "information", "chat", "preference"):
        for item in settings[kind]:
            del item["path"]
    inputs = {
        "code": scoring_code(),
        "checkpoint": checkpoint.fingerprint,
        "settings": settings,
        "normalize": recipe.data.normalize.model_dump(mode="json"),
        "seed": recipe.seed,
        "sets": sets,
    }
    if recipe.parents or recipe.evaluation.chat:
        inputs["chat"] = recipe.chat.model_dump(mode="json")
    if old := outdated(recipe.run_directory, checkpoint.fingerprint):
        inputs["outdated"] = sorted(old)
    if compared := identity(recipe, checkpoint) or contamination:
        inputs["contamination"] = compared
    return fingerprint(inputs)


def is_current(run: Path) -> bool:
    """Tells whether `results.json` matches the newest checkpoint, the recipe's evaluation and the contents of its sets.

    With failed scores it returns False, so that they are tried again.
    """
    if not (run / RESULTS).is_file():
        return False
    checkpoint = Choice().find(run)
    recipe = scored_recipe(run, checkpoint)
    wanted = scores_fingerprint(recipe, checkpoint, set_identities(recipe, missing=True))
    content = read_json(run / RESULTS)
    if content.get("fingerprint") != wanted or content.get("failures"):
        return False
    return bool(content.get("stage", {}).get("parent_results") == parent_results(recipe))


def parent_results(recipe: Recipe) -> str | None:
    """Returns the fingerprint of the results that a stage's scores are compared with; None where there are none."""
    stage = stage_of(recipe)
    if stage is None or not (stage.parent_run / RESULTS).is_file():
        return None
    return str(read_json(stage.parent_run / RESULTS).get("fingerprint"))


def check_current(run: Path, results: Results) -> None:
    """Raises `ValueError` when the scores do not belong to the chosen checkpoint.

    The choice is that of the evaluation: a step, the best or the newest checkpoint. If the checkpoints or a set no
    longer exist, nothing can be compared and the scores are accepted.
    """
    step, best = results.chosen.get("step"), bool(results.chosen.get("best"))
    choice, name = Choice(step, best), results.checkpoint["name"]
    if newest(run) is None or (step is not None and not (run / DIRECTORY / name).is_dir()):
        return
    checkpoint = choice.find(run)
    again = f"score it first with `replica eval {run}{f' --step {step}' if step else ' --best' if best else ''}`"
    if checkpoint.fingerprint != results.checkpoint["fingerprint"]:
        other = f", or choose {name} with `replica eval {run} --step {results.checkpoint['step']}`"
        raise ValueError(
            f"{run / RESULTS} holds the scores of {name}, but {checkpoint.directory.name} is {choice} checkpoint "
            f"now; {again}{other if (run / DIRECTORY / name).is_dir() else ''}"
        )
    if results.chosen.get("overrides"):
        return  # these overrides were for one evaluation; the page shows them
    recipe = scored_recipe(run, checkpoint)
    try:
        sets = set_identities(recipe)
    except ValueError:
        return
    known = results.chosen.get("contamination")
    if results.fingerprint != scores_fingerprint(recipe, checkpoint, sets, known):
        raise ValueError(
            f"{run / RESULTS} was made with other settings than `evaluation` of {run / RESOLVED_NAME}, from sets "
            f"that have changed since, or by another version of Replica; {again}"
        )

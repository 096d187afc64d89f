"""Checks a recipe for everything that is known to fail later, and reports all problems at once.

Every command that takes a recipe refuses contradictory settings and missing files. Problems of this machine (devices
and packages) are errors if training or scoring runs here, and notes otherwise: a recipe may be shown, prepared, trained
and scored on four different machines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from configs.common.layout import CHECKPOINTS, MANIFEST
from configs.common.notices import note
from configs.safety.own_files import refuse_links
from configs.safety.user_code import UserCode
from configs.schema.batch_plan import solve_batch
from configs.schema.pair_sets import GeneratedPairSet
from configs.schema.reading_direction import needs_causal
from configs.schema.recipe import Recipe, RecipeError
from configs.schema.section import Custom
from configs.schema.stage_recipe import is_masked
from data_prep.tokens.gaps import check_gaps
from pretrain.checkpoint.compatible import is_finished

# Tokenizers of sacrebleu that need another package: its module, and what installs it.
_BLEU_PACKAGES = {
    "ja-mecab": ("MeCab", "sacrebleu[ja]"),
    "ko-mecab": ("mecab_ko", "sacrebleu[ko]"),
    **dict.fromkeys(("spm", "flores101", "flores200", "spBLEU-1K"), ("sentencepiece", "sentencepiece")),
}

_HUB = "; download a model of the hub first, `hf download NAME --local-dir DIR`, and give its directory"
_FROM_HUB = {"train.init_from": _HUB, "data.tokenizer.path": _HUB.replace("model", "tokenizer")}


def check(
    recipe: Recipe, trains_here: bool, reads_sources: bool = True, scores_here: bool = False, stages: bool = False
) -> None:
    """Refuses a recipe with problems; prints notes on standard error.

    Args:
        recipe: validated.
        trains_here: training will run on this machine.
        reads_sources: check the source files even if data is already prepared.
        scores_here: evaluation is to run on this machine.
        stages: check the recipe of each stage too.

    Raises:
        RecipeError: listing all problems.
        ValueError: when the run directory contains a link that leads out of it; nothing there is read then.
    """
    problems: list[str] = []
    elsewhere: list[str] = []  # of this machine, where something is not to run here
    notable: list[str] = []
    for one in (recipe, *(recipe.stage(name) for name in recipe.stage_names if stages)):
        refuse_links(one.run_directory)
        problems += [*recipe_problems(one), *file_problems(one, reads_sources)]
        if not is_finished(one):  # a finished run needs no device, and the check no torch
            problems += [*training_problems(one), *unknown_benchmarks(one)]
            (problems if trains_here else elsewhere).extend(machine_problems(one, trains_here))
        (problems if scores_here else elsewhere).extend([*missing_packages(one), *missing_baseline(one)])
        notable += notes(one)
    problems = list(dict.fromkeys(problems))  # a stage inherits some from the recipe
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise RecipeError(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the recipe {recipe.name}\n{listed}"
        )
    for text in dict.fromkeys([*notable, *(f"on this machine, {text}" for text in elsewhere)]):
        note(text)


def _problems_of(work: Callable[[], object]) -> list[str]:
    """Returns the message of a `ValueError` of `work`, if it raises one."""
    try:
        work()
    except ValueError as error:
        return [str(error)]
    return []


# ------------------------------------------------------------------------------------------------------- of the recipe
def recipe_problems(recipe: Recipe) -> list[str]:
    """Returns problems that occur on any machine."""
    from eval.report.gates import gate_problems

    context, problems = recipe.model.context_length, gate_problems(recipe)
    for item in recipe.evaluation.perplexity:
        seen, whose = (context, "model.context_length") if item.context is None else (item.context, "its context")
        if seen > context:
            problems.append(
                f"evaluation.perplexity `{item.name}`: context {seen} is more than model.context_length {context}; "
                "lower it"
            )
        if item.stride is not None and item.stride > seen:
            problems.append(
                f"evaluation.perplexity `{item.name}`: stride {item.stride} is more than {whose} "
                f"{seen}, so tokens would be left out; lower it"
            )
    for where, pairs in _generated_pairs(recipe):
        if "bleu" in pairs.score and find_spec("sacrebleu"):
            problems += _bleu_problem(where, pairs.tokenize)
        if context - pairs.max_new_tokens < 2:
            problems.append(
                f"{where}: max_new_tokens {pairs.max_new_tokens} leaves no room for a "
                f"prompt in model.context_length {context}; lower it"
            )
    return problems + _direction_problems(recipe)


def _direction_problems(recipe: Recipe) -> list[str]:
    """Returns what the evaluation asks of a model that it cannot do, because it reads both ways, or does not."""
    section, model = recipe.evaluation, recipe.model
    problems = []
    # In a chain with both kinds of models, each does what it can (`eval.stage_facts.fitting`).
    if section.compression.codec and not recipe.parents:
        problems += _problems_of(lambda: needs_causal(model, "evaluation.compression.codec"))
    has_masked = not model.causal or any(map(is_masked, recipe.stages))
    why = None if has_masked or recipe.parents else "the model reads from left to right"
    for number, prompt in enumerate(section.samples.prompts):
        found = _problems_of(partial(check_gaps, prompt, model.context_length, why))
        problems += [f"evaluation.samples.prompts.{number}: {problem}" for problem in found]
    return problems


def unknown_benchmarks(recipe: Recipe) -> list[str]:
    """Returns the problem of benchmarks that no task file names; otherwise it would show when training has ended."""
    from data_prep.decontamination.benchmark_tasks import unknown_tasks

    section = recipe.evaluation.benchmarks
    own = [] if section.include_path is None else [section.include_path]
    if not all(Path(place).is_dir() for place in own):
        return []  # which is another problem
    known = " nor in ".join(own) or "an include_path"
    return [
        f"evaluation.benchmarks.tasks: `{name}` is neither a task in {known} nor one of lm-eval; correct it"
        for name in unknown_tasks(section.names, own)
    ]


def missing_baseline(recipe: Recipe) -> list[str]:
    """Returns the problem of a baseline that has no scores."""
    from eval.report.gates import baseline_problems

    return baseline_problems(recipe)


def training_problems(recipe: Recipe) -> list[str]:
    """Returns problems of training that occur on any device."""
    if undivided := _problems_of(lambda: solve_batch(recipe.train, _least_ranks(recipe))):
        return undivided
    try:
        from pretrain.parallel.rows import check_sequence
        from pretrain.parallel.tensor import check_tensor
    except ModuleNotFoundError:  # without torch, where data is prepared alone
        return []
    problems = [*_problems_of(lambda: check_sequence(recipe)), *_problems_of(lambda: check_tensor(recipe))]
    given = recipe.train.precision
    return problems or _deepspeed_problems(recipe, ["bf16", "fp32"] if given == "auto" else [given])


def _least_ranks(recipe: Recipe) -> int:
    """Returns the smallest possible number of ranks. Any other number is a multiple of it."""
    return math.lcm(recipe.train.ranks or 1, recipe.train.parallel.sharing)


def _deepspeed_problems(recipe: Recipe, precisions: list[str]) -> list[str]:
    """Returns the problems of DeepSpeed's configuration, if it is invalid with each of these precisions."""
    from pretrain.engine.deepspeed_config import deepspeed_config

    plan = solve_batch(recipe.train, _least_ranks(recipe))
    problems = [_problems_of(partial(deepspeed_config, recipe, plan, precision)) for precision in precisions]
    return problems[0] if all(problems) else []


def _generated_pairs(recipe: Recipe) -> Iterator[tuple[str, GeneratedPairSet]]:
    """Yields the sets whose targets the model generates, by their place in the recipe."""
    section = recipe.evaluation
    sets: list[GeneratedPairSet] = [*section.translation, *section.summarization]
    yield from ((f"evaluation.{one.kind} `{one.name}`", one) for one in sets)


def _bleu_problem(where: str, tokenize: str) -> list[str]:
    from sacrebleu.metrics import BLEU

    if tokenize not in BLEU.TOKENIZERS:
        return [f"{where}: sacrebleu has no tokenizer `{tokenize}`; it has {', '.join(sorted(BLEU.TOKENIZERS))}"]
    return []


def missing_packages(recipe: Recipe) -> list[str]:
    """Packages that scoring needs and that are not installed on this machine: training does without them."""
    found = []
    if recipe.evaluation.benchmarks.tasks and find_spec("lm_eval") is None:
        found.append("evaluation.benchmarks: lm-eval is not installed; run `pip install lm-eval`")
    if recipe.evaluation.compression.codec and find_spec("constriction") is None:
        found.append(
            "evaluation.compression.codec: constriction is not installed; run `pip install 'gpt-replica[codec]'`"
        )
    for where, pairs in _generated_pairs(recipe):
        if "rouge" in pairs.score and find_spec("rouge_score") is None:
            found.append(f"{where}: rouge-score is not installed; run `pip install rouge-score`")
        if set(pairs.score) == {"rouge"}:
            continue
        module, package = _BLEU_PACKAGES.get(pairs.tokenize, (None, ""))
        if find_spec("sacrebleu") is None:
            found.append(f"{where}: sacrebleu is not installed; run `pip install sacrebleu`")
        elif module is not None and find_spec(module) is None:
            problem = f"sacrebleu's tokenizer `{pairs.tokenize}` needs another package"
            found.append(f"{where}: {problem}; run `pip install '{package}'`")
    return found


# ----------------------------------------------------------------------------------------------------------- its files
def file_problems(recipe: Recipe, reads_sources: bool) -> list[str]:
    """Returns files of the recipe that are missing; URLs are not checked."""
    named = _files(recipe, reads_sources)
    found = [problem for what, path, directory in named for problem in _missing_files(what, path, directory)]
    if recipe.data.select is not None and (reads_sources or not (recipe.data_directory / MANIFEST).is_file()):
        from data_prep.selection.score_files import scored_by

        found += _problems_of(partial(scored_by, recipe.data.select))
    return found


def _files(recipe: Recipe, reads_sources: bool) -> Iterator[tuple[str, str | None, bool]]:
    data, evaluation = recipe.data, recipe.evaluation
    if reads_sources or not (recipe.data_directory / MANIFEST).is_file():
        for source in data.sources:
            listed = [source.path] if isinstance(source.path, str) else source.path or []
            yield from ((f"data.sources `{source.name}`", path, False) for path in listed)
            yield f"data.sources `{source.name}`.paths_file", source.paths_file, False
        yield "data.tokenizer.path", None if recipe.parents else data.tokenizer.path, True  # training checks parents
        yield "data.quality.blocklist", data.quality.blocklist, False
        if data.quality.classifier is not None:
            yield "data.quality.classifier.path", data.quality.classifier.path, False
        for path in data.decontaminate.files if data.decontaminate else []:
            yield "data.decontaminate.files", path, False
    for item in evaluation.perplexity:
        yield f"evaluation.perplexity `{item.name}`", item.path, False
    for where, pairs in _generated_pairs(recipe):
        yield where, pairs.path, False
    for both in evaluation.information:
        yield f"evaluation.information `{both.name}`", both.path, False
    if evaluation.benchmarks.tasks:
        yield "evaluation.benchmarks.include_path", evaluation.benchmarks.include_path, True
    if not recipe.parents and not (recipe.run_directory / CHECKPOINTS).is_dir():
        yield "train.init_from", recipe.train.init_from, True


def _missing_files(what: str, path: str | None, directory: bool) -> list[str]:
    """Returns the problem of a path, if any; `directory`: it may be a directory."""
    from configs.common.stores import is_url
    from data_prep.sources.places import expand

    if path is None or is_url(path):
        return []
    if directory:
        return [] if Path(path).exists() else [f"{what}: {path} is not there{_FROM_HUB.get(what, '')}"]
    return [f"{what}: {text}" for text in _problems_of(lambda: expand(path))]


# -------------------------------------------------------------------------------------------------------- this machine
def machine_problems(recipe: Recipe, trains_here: bool) -> list[str]:
    """Returns problems of training with the devices and packages of this machine."""
    train, found = recipe.train, []
    if train.wandb is not None and find_spec("wandb") is None:
        found.append("train.wandb is set, but wandb is not installed; run `pip install wandb` or drop train.wandb")
    if isinstance(own := train.objective, Custom):
        found += _problems_of(lambda: UserCode.read(own.code, own.options).allowed("train.objective"))
    try:
        import torch
    except ModuleNotFoundError:
        return found if not trains_here else [*found, "torch is not installed; `make setup` installs it"]
    from launch.processes.training import count_ranks
    from pretrain.engine.deepspeed_config import resolve_precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found += _problems_of(lambda: resolve_precision(train.precision, device))
    if train.ranks is None:
        found += _problems_of(lambda: solve_batch(train, count_ranks(recipe)))
    if found or training_problems(recipe):
        return found
    return _deepspeed_problems(recipe, [resolve_precision(train.precision, device)])


# --------------------------------------------------------------------------------------------------------------- notes
def notes(recipe: Recipe) -> list[str]:
    """Returns notes: facts that are not mistakes, but should be known before training."""
    from eval.report.gates import gates_on_other_tasks, gates_without_baseline
    from pretrain.interchange.exportable import export_problems

    unexportable = [f"`replica export` will not be possible: {text}" for text in export_problems(recipe)]
    return [*unexportable, *gates_on_other_tasks(recipe), *gates_without_baseline(recipe)]

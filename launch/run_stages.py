"""Runs what `replica run` consists of in order, and skips all whose output is current.

The run of the recipe itself comes first, then that of each stage: data, training, evaluation, report. The report of
the recipe's run is last, because it shows the stages too.

Checks of what is current import neither torch nor ray, so that a finished run takes a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from configs.common.console import Console
from configs.common.files import read_json
from configs.common.layout import CHECKPOINTS, MANIFEST
from configs.common.locks import held_run
from configs.common.notices import say
from configs.common.rendering import duration
from configs.schema.recipe import Recipe, save
from eval.report.stamp import page_is_current
from eval.results import ScoresBroken, ScoresFailed
from launch.headlines import print_headlines, print_verdict


@dataclass(frozen=True)
class Work:
    """One part of a run: its name, whether its output is current, and what makes it."""

    title: str
    is_current: Callable[[], bool]
    make: Callable[[], object]


def run_all(recipe: Recipe) -> int:
    """Does all work that is not current, then prints the headline numbers and the report's path.

    Returns:
        0, or 1 when a gate of the recipe failed.

    Raises:
        ScoresFailed: some scores failed; all other work is done.
    """
    from data_prep.decontamination.evaluation_sets import check_tasks

    check_tasks(recipe)  # now, rather than after days of training
    run, stages = recipe.run_directory, [recipe.stage(name) for name in recipe.stage_names]
    console = Console(stderr=True)
    began = time.monotonic()
    failed: list[Exception] = []
    with working_in(recipe):
        base = _work(recipe)
        title = recipe.name if stages else ""
        failed += _do_all(base if not stages else base[:-1], title, console)
        for name, stage in zip(recipe.stage_names, stages, strict=True):
            with working_in(stage):
                failed += _do_all(_work(stage), name, console)
        if stages:
            failed += _do_all(base[-1:], title, console)
    console.print(f"finished in {duration(time.monotonic() - began)}")
    for one in (recipe, *stages):
        print_headlines(one.run_directory, one.name if stages else "")
    verdict = print_verdict(run)
    if failed:
        raise failed[0]
    return verdict


def _work(recipe: Recipe) -> list[Work]:
    """Lists the work of one run, the report last."""
    run = recipe.run_directory
    return [
        Work("data: documents, tokenizer, shards", lambda: _data_is_current(recipe), lambda: data_stage(recipe)),
        Work("training", lambda: _training_is_done(recipe), lambda: train_stage(recipe)),
        Work("evaluation", lambda: _results_are_current(run), lambda: eval_stage(recipe)),
        Work("report", lambda: page_is_current(run), lambda: report_stage(run)),
    ]


def _do_all(parts: list[Work], run: str, console: Console) -> list[Exception]:
    """Does the work that is not current; returns failures of scores, which the report names beside the other scores."""
    failed: list[Exception] = []
    for number, part in enumerate(parts, start=1):
        try:
            _do(part, f"{run} [{number}/{len(parts)}] {part.title}".lstrip(), console)
        except (ScoresFailed, ScoresBroken) as error:
            if not error.saved:
                raise
            failed.append(error)
    return failed


def _do(part: Work, heading: str, console: Console) -> None:
    if part.is_current():
        console.print(heading, "– up to date", style="dim", markup=False)
        return
    console.print(heading, style="bold", markup=False)
    began = time.monotonic()
    part.make()
    console.print(f"      {duration(time.monotonic() - began)}", style="dim")


@contextmanager
def working_in(recipe: Recipe) -> Iterator[None]:
    """Locks the run directory for one command, and writes the resolved recipe into it.

    Raises:
        ValueError: when another process uses it, or it contains a run that was trained with other settings.
    """
    run = recipe.run_directory
    run.mkdir(parents=True, exist_ok=True)
    with held_run(run):
        _check_training(recipe)
        save(recipe, run)
        yield


# ---------------------------------------------------------------------------------------------------------------- data
def _data_is_current(recipe: Recipe) -> bool:
    from data_prep.stages.pipeline import is_current

    return is_current(recipe) or _stays(recipe)


def _stays(recipe: Recipe) -> bool:
    """Tells whether data is kept because this run was trained on it, although today's code would prepare it again.

    Raises:
        ValueError: when the sources or settings of the data have changed since.
    """
    from data_prep.stages.reuse import changed_inputs
    from pretrain.checkpoint.manifest import newest

    info = newest(recipe.run_directory)
    file = recipe.data_directory / MANIFEST
    if info is None or not file.is_file() or "data" in recipe.train.checkpoint.accept_changed:
        return False
    if read_json(file).get("fingerprint") != info.data_fingerprint:
        return False
    if changed := changed_inputs(recipe):
        raise ValueError(
            f"{recipe.data_directory} would be prepared again ({', '.join(changed)}), but {info.directory} was trained "
            "on it as it is; undo the change, start a new run with another --out, or use `replica train`, which does "
            "not prepare data"
        )
    say(
        "data: prepared by another version of Replica or its libraries, or some files are missing; kept, because "
        "training used it"
    )
    return True


def data_stage(recipe: Recipe) -> Path:
    """Prepares the data, prints the mixture, and returns the data's directory.

    Raises:
        ValueError: also when the recipe's mixture is impossible, or when new data would replace the data that the run
            was trained on.
    """
    from data_prep.stages.pipeline import is_current, prepare
    from data_prep.tokens.shards import load_manifest
    from pretrain.batches.mixture import mixture_lines, mixture_table

    kept = not is_current(recipe) and _stays(recipe)
    data = load_manifest(recipe.data_directory) if kept else prepare(recipe)
    for line in mixture_lines(mixture_table(recipe, data)):
        say(f"mixture: {line}")
    return data.directory


# ------------------------------------------------------------------------------------------------------------ training
def _training_is_done(recipe: Recipe) -> bool:
    from pretrain.checkpoint.compatible import is_finished

    return is_finished(recipe)


def _check_training(recipe: Recipe) -> None:
    """Refuses a run directory that was trained with other settings, before anything is written."""
    if not (recipe.run_directory / CHECKPOINTS).is_dir():
        return
    from data_prep.tokens.shards import load_manifest
    from pretrain.checkpoint.compatible import check_past, check_settings

    info = check_settings(recipe)
    if info is not None and (recipe.data_directory / MANIFEST).is_file():
        data = load_manifest(recipe.data_directory)
        if data.fingerprint == info.data_fingerprint:
            check_past(info, recipe, data)


def train_stage(recipe: Recipe) -> Path:
    """Trains to the last step; returns the checkpoint's directory.

    Raises:
        ValueError: when training ends before its last step.
    """
    from launch.processes.training import TrainingFailed, count_ranks, train_here, train_ranks
    from pretrain.checkpoint.compatible import is_finished
    from pretrain.checkpoint.manifest import newest

    ranks = count_ranks(recipe)
    if ranks == 1:
        train_here(recipe)
    else:
        train_ranks(recipe, ranks)
    info = newest(recipe.run_directory)
    if info is None or not is_finished(recipe):
        raise TrainingFailed("training ended before its last step; the same command continues")
    return info.directory


# ---------------------------------------------------------------------------------------------------------- evaluation
def _results_are_current(run: Path) -> bool:
    from eval.currency import is_current

    return is_current(run)


def eval_stage(recipe: Recipe) -> Path:
    """Scores the newest checkpoint on the ranks that training had; returns results.json."""
    from launch.processes.evaluation import evaluation_ranks, score_run

    return score_run(recipe.run_directory, evaluation_ranks(recipe))


# -------------------------------------------------------------------------------------------------------------- report
def report_stage(run: Path, baseline: Path | None = None) -> Path:
    """Renders the report; returns the page."""
    from eval.report.page import write_report
    from eval.report.stamp import write_stamp

    page = write_report(run, baseline)
    write_stamp(run, baseline)
    return page

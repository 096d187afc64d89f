"""Implements the subcommands of `replica`. Each imports heavy libraries only when it needs them."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path

from configs.schema.recipe import Recipe, check_name, find_run, load, load_run, load_with_origins
from launch.planning.checks import check

_LITERAL = {"out": "out", "ranks": "train.ranks", "ray_address": "data.ray_address"}


def _literal(arguments: Namespace) -> dict[str, str | int]:
    """Returns settings that are given by options. Their values are not parsed as YAML."""
    given = {path: getattr(arguments, name, None) for name, path in _LITERAL.items()}
    return {path: value for path, value in given.items() if value is not None}


def _load(arguments: Namespace) -> Recipe:
    """Loads the recipe, or the recipe of its stage that `--stage` names."""
    recipe = load(arguments.recipe, arguments.overrides, _literal(arguments))
    check_name(arguments.recipe, recipe, arguments.overrides)
    name = getattr(arguments, "stage", None)
    return recipe if name is None else recipe.stage(name)


def replica_run(arguments: Namespace) -> int:
    """`replica run`: runs all stages, then prints the main scores and the report's path."""
    from launch.run_stages import run_all

    recipe = _load(arguments)
    check(recipe, trains_here=True, scores_here=True, stages=True)
    return run_all(recipe)


def replica_data(arguments: Namespace) -> int:
    """`replica data`: makes documents -> verdicts -> tokenizer -> shards, or a page on a sample."""
    from launch.run_stages import data_stage, working_in

    recipe = _load(arguments)
    if arguments.sample is not None:
        return _sample_data(recipe, arguments.sample)
    check(recipe, trains_here=False)
    with working_in(recipe):
        print(data_stage(recipe))
    return 0


def _sample_data(recipe: Recipe, documents: int) -> int:
    import webbrowser

    from data_prep.stages.sample import sample

    if documents < 1:
        raise ValueError(f"--sample {documents}: give the number of documents to try, such as 200")
    opened = False
    table: list[str] = []
    for page, funnel in sample(recipe, documents):
        table = [
            f"{row['source']:16} {row['stage']:14} {row['reason']:28} {row['documents']:8,} {row['bytes']:12,} bytes"
            for row in funnel
        ]
        print(page, flush=True)
        if not opened and sys.stdout.isatty() and (os.environ.get("DISPLAY") or sys.platform == "darwin"):
            opened = webbrowser.open(page.resolve().as_uri())
    print("\n".join(table))  # of the whole sample: the page alone shows the first look
    return 0


def replica_tokenizer(arguments: Namespace) -> int:
    """`replica tokenizer compare`: prints a table of vocabularies, measured on held-out text."""
    from configs.common.files import write_json
    from data_prep.stages.compare_vocabularies import as_json, compare, markdown, read_size

    sizes = [read_size(size) for size in arguments.sizes.split(",")]
    data = load(arguments.recipe, arguments.overrides).data
    measured, held_out = compare(data, sizes, arguments.kinds.split(","), arguments.files, arguments.sample_bytes)
    print(markdown(measured, held_out))
    if arguments.json is not None:
        write_json(arguments.json, as_json(measured, held_out))
    return 0


def replica_train(arguments: Namespace) -> int:
    """`replica train`: trains or continues, on one rank or several."""
    from launch.run_stages import train_stage, working_in

    recipe = _load(arguments)
    check(recipe, trains_here=True, reads_sources=False)
    with working_in(recipe):
        if not arguments.supervise:
            print(train_stage(recipe))
            return 0
        from launch.processes.supervise import supervise

        print(supervise(recipe, arguments.restarts, arguments.pause))
    return 0


def replica_eval(arguments: Namespace) -> int:
    """`replica eval`: scores a checkpoint and writes results.json."""
    from eval.suite import evaluate
    from pretrain.checkpoint.choice import Choice

    choice = Choice(arguments.checkpoint_step, arguments.best)
    print(evaluate(load_run(arguments.run).run_directory, arguments.overrides, choice=choice, again=arguments.again))
    return 0


def replica_report(arguments: Namespace) -> int:
    """`replica report`: writes the page and the Markdown summary; with `--gate`, returns 1 when a gate failed."""
    from launch.headlines import print_verdict
    from launch.run_stages import report_stage

    run = load_run(arguments.run).run_directory
    report_stage(run, arguments.baseline)
    code = print_verdict(run)
    return code if arguments.gate else 0


def replica_export(arguments: Namespace) -> int:
    """`replica export`: writes a Hugging Face directory or a GGUF file; returns 1 if `--verify` finds a difference."""
    from eval.export_check import NotTheSame
    from launch.models.export_model import export_run
    from pretrain.checkpoint.choice import Choice

    choice = Choice(arguments.checkpoint_step, arguments.best)
    form = (arguments.dtype, arguments.max_shard_size, arguments.verify)
    try:
        print(export_run(arguments.run, arguments.directory, choice, *form))
    except NotTheSame as error:
        print(f"error: {error}; nothing was written", file=sys.stderr)
        return 1
    return 0


def replica_import(arguments: Namespace) -> int:
    """`replica import`: makes a run directory from a Hugging Face directory."""
    from launch.models.import_model import import_run

    out = arguments.out or Path("runs") / arguments.directory.resolve().name
    print(import_run(arguments.directory, out, arguments.recipe))
    return 0


def replica_sample(arguments: Namespace) -> int:
    """`replica sample`: prints the prompt and streams its continuation."""
    from launch.models.sampling import stream_sample

    stream_sample(arguments)
    return 0


def replica_chat(arguments: Namespace) -> int:
    """`replica chat`: a conversation with a model, or one printed answer."""
    from launch.chat.terminal import chat

    chat(arguments)
    return 0


def replica_serve(arguments: Namespace) -> int:
    """`replica serve`: serves a page and an API until a signal ends it."""
    from launch.chat.serve import serve

    serve(arguments)
    return 0


def replica_trace(arguments: Namespace) -> int:
    """`replica trace`: prints a table of what stands behind one training step, or one answer in full."""
    from launch.trace import print_trace

    run = arguments.run if arguments.stage is None else find_run(f"{arguments.run}:{arguments.stage}")
    print_trace(load_run(run), arguments.step, arguments.sample)
    return 0


def replica_doctor(arguments: Namespace) -> int:
    """`replica doctor`: prints a table of checks of this machine; returns 1 when one will break a run."""
    from launch.planning.doctor import diagnose, local_ranks, on_this_machine

    recipe = _load(arguments) if arguments.recipe is not None else None
    count = local_ranks(recipe, arguments.ranks)
    if count > 1:
        words = [str(arguments.recipe), *arguments.overrides] if recipe is not None else []
        for name in ("out", "nodes", "json"):
            value = getattr(arguments, name)
            words += [] if value is None else [f"--{name}={value}"]
        return on_this_machine(count, [*words, *(["--quick"] if arguments.quick else [])])
    return diagnose(recipe, arguments.nodes, arguments.quick, arguments.json)


def replica_sweep(arguments: Namespace) -> int:
    """`replica sweep`: trains several sizes or a grid of settings; fits a scaling law and prints the summary."""
    from launch.planning.sweep import Sweep, grid, sizes
    from launch.planning.sweep_page import markdown

    sweep = Sweep(arguments.recipe, arguments.overrides, arguments.out)
    if arguments.vary:
        if arguments.check:
            raise ValueError("--check trains a predicted size, and --vary predicts none; leave one of them out")
        summary = {"name": sweep.name, "runs": sweep.run(grid(arguments.overrides, arguments.vary))}
        sweep.write(summary)
    else:
        dial, values = ("depth", arguments.depths) if arguments.depths else ("size", arguments.sizes)
        points = sizes(arguments.recipe, arguments.overrides, dial, values.split(","))
        summary = sweep.law(points, arguments.check)
    print(markdown(summary))
    print(sweep.directory / "index.html")
    return 0


def replica_plan(arguments: Namespace) -> int:
    """`replica plan`: predicts memory, time, cost and data of a recipe."""
    from launch.planning import plan

    return plan.print_plan(arguments)


def replica_show(arguments: Namespace) -> int:
    """`replica show`: prints the resolved recipe with origins, and derived figures."""
    whole, origins = load_with_origins(arguments.recipe, arguments.overrides, _literal(arguments))
    check_name(arguments.recipe, whole, arguments.overrides)
    recipe = whole if arguments.stage is None else whole.stage(arguments.stage)
    if arguments.run_directory:
        print(recipe.run_directory)
        return 0
    from configs.common.console import Console
    from launch.planning.show import StageOrigins, before_preparation, print_facts, print_recipe

    check(recipe, trains_here=False, reads_sources=False)
    console = Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "160")))
    known = origins if recipe is whole else StageOrigins(whole, origins, arguments.stage)
    print_recipe(recipe, known, console)
    print_facts(before_preparation(recipe, whole), recipe.train.ranks or 1, console)
    return 0

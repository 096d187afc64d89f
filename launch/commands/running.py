"""The subcommands that train: `replica run`, `replica train`, `replica sweep`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from launch.commands.arguments import add_ranks, add_ray, add_recipe_and_out, add_restarts, add_stage
from launch.commands.command import Command


def _run_arguments(parser: ArgumentParser) -> None:
    add_ranks(parser)
    add_ray(parser)


def replica_run(arguments: Namespace) -> int:
    """`replica run`: runs all stages, then prints the main scores and the report's path."""
    from launch.commands.loading import load_recipe
    from launch.planning.checks import check
    from launch.run_stages import run_all

    recipe = load_recipe(arguments)
    check(recipe, trains_here=True, scores_here=True, stages=True)
    return run_all(recipe)


RUN = Command(
    "run",
    "Run all stages: data, training, evaluation, report. Skip those whose inputs did not change.",
    "replica run demo --out runs/mine train.steps=200",
    _run_arguments,
    replica_run,
    resumes=True,
)


def _train_arguments(parser: ArgumentParser) -> None:
    add_ranks(parser)
    add_stage(parser)
    parser.add_argument("--supervise", action="store_true", help="start again after a crash, a killed rank or a hang")
    add_restarts(parser)
    parser.add_argument(
        "--code", metavar="FILE", type=Path, help="also code the corpus into FILE, each batch before its update"
    )


def replica_train(arguments: Namespace) -> int:
    """`replica train`: trains or continues, on one rank or several."""
    from launch.commands.loading import load_recipe
    from launch.planning.checks import check
    from launch.run_stages import train_stage, working_in

    recipe = load_recipe(arguments)
    if arguments.code:
        from launch.commands.decoding import refuse_supervised, train_and_code

        refuse_supervised(arguments)
        check(recipe, trains_here=True, reads_sources=False)
        print(train_and_code(recipe, arguments.code))
        return 0
    check(recipe, trains_here=True, reads_sources=False)
    with working_in(recipe):
        if not arguments.supervise:
            print(train_stage(recipe))
            return 0
        from launch.processes.supervise import supervise

        print(supervise(recipe, arguments.restarts, arguments.pause))
    return 0


TRAIN = Command(
    "train",
    "Train; continue from the newest checkpoint if there is one.",
    "replica train demo --ranks 2 --supervise train.optimizer.lr=3e-4",
    _train_arguments,
    replica_train,
    resumes=True,
)


def _sweep_arguments(parser: ArgumentParser) -> None:
    add_recipe_and_out(parser)
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument(
        "--depths", metavar="N,…", help="train models with these numbers of layers, predict the next one"
    )
    choice.add_argument(
        "--sizes", metavar="N,…", help="train models of these sizes, such as 1M,3M,10M, predict the next"
    )
    choice.add_argument("--vary", metavar="a.b=x,y", action="append", help="compare values of a setting; twice: a grid")
    parser.add_argument("--check", action="store_true", help="also train the predicted size, and compare")


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


SWEEP = Command(
    "sweep",
    "Train several sizes, fit loss against compute, predict the next size; or compare settings.",
    "replica sweep demo --depths 1,2,3 train.tokens_per_parameter=2",
    _sweep_arguments,
    replica_sweep,
    resumes=True,
)

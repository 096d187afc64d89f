"""The subcommands that look and change nothing: `replica trace`, `doctor`, `plan` and `show`."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from launch.commands.arguments import add_recipe, add_recipe_and_out, add_run, add_stage, count
from launch.commands.command import Command


def _trace_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--stage", metavar="NAME", help="this stage of the run, as RUN:NAME")
    parser.add_argument("--step", type=int, required=True, metavar="N", help="training step, counted from 1")
    parser.add_argument(
        "--sample", type=count, metavar="K", help="show answer K of the step in full, with each reward (grpo, ppo)"
    )


def replica_trace(arguments: Namespace) -> int:
    """`replica trace`: prints a table of what stands behind one training step, or one answer in full."""
    from configs.schema.recipe import find_run, load_run
    from launch.trace import print_trace

    run = arguments.run if arguments.stage is None else find_run(f"{arguments.run}:{arguments.stage}")
    print_trace(load_run(run), arguments.step, arguments.sample)
    return 0


TRACE = Command(
    "trace",
    "List the documents, conversations, pairs or answers of a training step; explain the reward of an answer.",
    "replica trace runs/demo --step 10",
    _trace_arguments,
    replica_trace,
)


def _doctor_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "recipe", metavar="RECIPE", nargs="?", help="also check this recipe's run directory and its disk"
    )
    parser.add_argument(
        "overrides",
        metavar="a.b=value",
        nargs="*",
        default=[],
        help="settings that replace the recipe's, by their path",
    )
    parser.add_argument("--out", metavar="DIR", help="run directory (default: runs/<name of the recipe>)")
    parser.add_argument("--ranks", type=int, metavar="N", help="processes on this machine (default: as in training)")
    parser.add_argument("--nodes", type=int, metavar="N", help="fail unless N nodes report")
    parser.add_argument("--quick", action="store_true", help="use small messages and files, one rank a node")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to FILE")


def replica_doctor(arguments: Namespace) -> int:
    """`replica doctor`: prints a table of checks of this machine; returns 1 when one will break a run."""
    from launch.commands.loading import load_recipe
    from launch.planning.doctor import diagnose, local_ranks, on_this_machine

    recipe = load_recipe(arguments) if arguments.recipe is not None else None
    ranks = local_ranks(recipe, arguments.ranks)
    if ranks > 1:
        words = [str(arguments.recipe), *arguments.overrides] if recipe is not None else []
        for name in ("out", "nodes", "json"):
            value = getattr(arguments, name)
            words += [] if value is None else [f"--{name}={value}"]
        return on_this_machine(ranks, [*words, *(["--quick"] if arguments.quick else [])])
    return diagnose(recipe, arguments.nodes, arguments.quick, arguments.json)


DOCTOR = Command(
    "doctor",
    "Check versions, devices, links between ranks, disks, clocks, limits; exit with 1 when one will break a run.",
    "replica doctor demo --ranks 2",
    _doctor_arguments,
    replica_doctor,
)


def _plan_arguments(parser: ArgumentParser) -> None:
    add_recipe(parser)
    add_stage(parser)
    parser.add_argument("--gpus", metavar="NxNAME", help="GPUs of a node, such as 8xH100 (default: this machine)")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="number of nodes (default: 1)")
    parser.add_argument("--price", type=float, metavar="P", help="price of one GPU for an hour")
    parser.add_argument("--probe", action="store_true", help="measure up to 20 steps on this machine")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")


def replica_plan(arguments: Namespace) -> int:
    """`replica plan`: predicts memory, time, cost and data of a recipe."""
    from launch.planning import plan

    return plan.print_plan(arguments)


PLAN = Command(
    "plan",
    "Predict a run's memory by part and ZeRO stage, and its time, cost and data.",
    "replica plan llama-8b --gpus 8xH100 --nodes 8 --price 2.5",
    _plan_arguments,
    replica_plan,
)


def _show_arguments(parser: ArgumentParser) -> None:
    add_recipe_and_out(parser)
    add_stage(parser)
    parser.add_argument("--run-directory", action="store_true", help="print only the run directory")


def replica_show(arguments: Namespace) -> int:
    """`replica show`: prints the resolved recipe with origins, and derived figures."""
    from configs.schema.recipe import check_name, load_with_origins
    from launch.commands.loading import set_by_options

    whole, origins = load_with_origins(arguments.recipe, arguments.overrides, set_by_options(arguments))
    check_name(arguments.recipe, whole, arguments.overrides)
    recipe = whole if arguments.stage is None else whole.stage(arguments.stage)
    if arguments.run_directory:
        print(recipe.run_directory)
        return 0
    from configs.common.console import Console
    from launch.planning.checks import check
    from launch.planning.show import StageOrigins, before_preparation, print_facts, print_recipe

    check(recipe, trains_here=False, reads_sources=False)
    console = Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "160")))
    known = origins if recipe is whole else StageOrigins(whole, origins, arguments.stage)
    print_recipe(recipe, known, console)
    print_facts(before_preparation(recipe, whole), recipe.train.ranks or 1, console)
    return 0


SHOW = Command(
    "show",
    "Show the resolved recipe with every default, and where each value comes from.",
    "replica show demo model.num_layers=2",
    _show_arguments,
    replica_show,
)

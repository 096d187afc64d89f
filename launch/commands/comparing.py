"""The subcommand that compares runs: `replica compare`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from launch.commands.command import Command

GATE_FAILED = 1


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="run directory, RUN:STAGE, or a directory with the results.json and scores of a run; two or more",
    )
    parser.add_argument(
        "--against", metavar="RUN", help="the run that the others are compared with (default: the first)"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("runs/comparison"), help="write here (default: runs/comparison)"
    )
    parser.add_argument("--gate", action="store_true", help="exit with 1 when a score is worse than the reference's")


def replica_compare(arguments: Namespace) -> int:
    """`replica compare`: writes the page, Markdown and JSON; with `--gate`, returns 1 when a score is worse."""
    from configs.schema.recipe import find_run
    from eval.comparison.many_runs import compare
    from eval.comparison_report.comparison_page import write_comparison
    from launch.headlines import print_comparison

    names = list(arguments.runs)
    if arguments.against is not None and arguments.against not in names:
        names.insert(0, arguments.against)
    against = names.index(arguments.against) if arguments.against is not None else 0
    comparison = compare([find_run(name) for name in names], names, against)
    page = write_comparison(comparison, arguments.out)
    print_comparison(comparison)
    print(page)
    worse = any(change.verdict == "worse" for found in comparison.changes.values() for change in found)
    return GATE_FAILED if worse and arguments.gate else 0


COMPARE = Command(
    "compare",
    "Compare runs item by item; write a page, Markdown and JSON.",
    "replica compare runs/demo runs/mine runs/other",
    _arguments,
    replica_compare,
)

"""The subcommand that asks people: `replica judge`."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

from launch.commands.arguments import add_server, run_directory
from launch.commands.command import Command


def _run_or_override(text: str) -> Path | str:
    return text if re.match(r"^[A-Za-z_][\w.-]*=", text) else run_directory(text)


def _judge_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=_run_or_override, help="runs to compare; RUN:STAGE for a stage"
    )
    parser.set_defaults(overrides=[])
    parser.add_argument("--models", metavar="STAGE,…", help="compare these stages of RUN; base is the run itself")
    parser.add_argument("--rate", action="store_true", help="rate each answer on scales, instead of comparing two")
    parser.add_argument("--set", metavar="NAME", help="which set of evaluation.people (default: the first)")
    parser.add_argument("--prompts", metavar="FILE", type=Path, help="prompts, .jsonl or .txt, instead of the recipe's")
    parser.add_argument("--again", action="store_true", help="ask the models again; earlier votes are put aside")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--file", metavar="PAGE.html", type=Path, help="write the page as one file that works from disk")
    what.add_argument(
        "--import",
        dest="votes",
        metavar="VOTES.jsonl",
        nargs="+",
        type=Path,
        default=[],
        help="add the votes of pages",
    )
    what.add_argument("--results", action="store_true", help="print what the votes say so far")
    what.add_argument("--set-aside", dest="aside", metavar="RATER", help="do not count this rater; needs --because")
    what.add_argument("--restore", metavar="RATER", help="count this rater again")
    parser.add_argument("--because", metavar="TEXT", help="why the rater is set aside; the results show it")
    add_server(parser, 8001)


def replica_judge(arguments: Namespace) -> int:
    """`replica judge`: serves a page for people to judge answers, or writes it, or reads their votes."""
    from launch.judging.judge import judge

    judge(arguments)
    return 0


JUDGE = Command(
    "judge",
    "Have people judge answers blindly: which of two is better, or how good one is.",
    "replica judge runs/assistant --models sft,grpo --prompts prompts.jsonl",
    _judge_arguments,
    replica_judge,
)

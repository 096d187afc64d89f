"""Parses the command line of `replica` and runs the subcommand; `launch/commands/` has them all."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from configs.common.exit_codes import CONTINUES, add_debug, run_command
from configs.common.versions import own_version
from configs.safety.trust import trusting
from configs.schema.shipped import shipped_recipes
from launch.commands.coding import COMPRESS, DECOMPRESS
from launch.commands.comparing import COMPARE
from launch.commands.decoding import DECODE
from launch.commands.embedding import EMBED
from launch.commands.exchanging import EXPORT, IMPORT
from launch.commands.inspecting import DOCTOR, PLAN, SHOW, TRACE
from launch.commands.judging import JUDGE
from launch.commands.preparing import DATA, TOKENIZER
from launch.commands.running import RUN, SWEEP, TRAIN
from launch.commands.scoring import EVAL, REPORT
from launch.commands.speaking import CHAT, SAMPLE, SERVE
from launch.commands.texts import SCORE

_OVERRIDE = re.compile(r"^[A-Za-z_][\w.-]*=")

# In the order of the help, one on a line.
_IN_ORDER = (
    RUN,
    DATA,
    TOKENIZER,
    TRAIN,
    DECODE,
    EVAL,
    SCORE,
    REPORT,
    COMPARE,
    EXPORT,
    IMPORT,
    SAMPLE,
    COMPRESS,
    DECOMPRESS,
    EMBED,
    CHAT,
    SERVE,
    JUDGE,
    TRACE,
    DOCTOR,
    SWEEP,
    PLAN,
    SHOW,
)
COMMANDS = {command.name: command for command in _IN_ORDER}


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="replica",
        description="Train a GPT from raw text, evaluate it and report the results.",
        epilog="Example: replica run demo   (help on one command: replica run --help)",
    )
    parser.add_argument("--version", action="version", version=f"replica {own_version()}")
    add_debug(parser)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS.values():
        subparser = subparsers.add_parser(
            command.name,
            help=command.description,
            description=command.description,
            epilog=f"Example: {command.example}",
            allow_abbrev=False,
        )
        command.add_arguments(subparser)
        add_debug(subparser)
    return parser


def _recipe_before_files(argv: Sequence[str]) -> list[str]:
    """Moves the recipe out of the list of files in `tokenizer compare --files A B RECIPE`, as argparse cannot."""
    if list(argv[:2]) != ["tokenizer", "compare"]:
        return list(argv)
    among_files, known, moved, rest = False, shipped_recipes(), [], []
    for item in argv[2:]:
        if item.startswith("-"):
            among_files = item == "--files"
        if among_files and (item.endswith((".yaml", ".yml")) or item in known or _OVERRIDE.match(item)):
            moved.append(item)
        else:
            rest.append(item)
    return [*argv[:2], *moved, *rest]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line. Overrides may be given anywhere after the command."""
    parser = build_parser()
    arguments, left = parser.parse_known_args(_recipe_before_files(argv))
    if hasattr(arguments, "paths"):  # argparse takes those alone that stand before the options
        given = [*arguments.paths, *(item for item in left if not item.startswith("-"))]
        left = [item for item in left if item.startswith("-")] + [item for item in given if _OVERRIDE.match(item)]
        arguments.paths = [item for item in given if not _OVERRIDE.match(item)]
    overrides = [item for item in left if _OVERRIDE.match(item)]
    unknown = [item for item in left if item not in overrides]
    if unknown or (overrides and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(unknown or overrides)}")
    if overrides:
        arguments.overrides = [*arguments.overrides, *overrides]
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code (see `configs/common/exit_codes.py`)."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    command = COMMANDS[arguments.command]

    def run() -> int:
        with trusting(getattr(arguments, "trust", [])):
            return command.run(arguments)

    return run_command(run, getattr(arguments, "debug", False), CONTINUES if command.resumes else "stopped")


if __name__ == "__main__":
    sys.exit(main())

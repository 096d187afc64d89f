"""Adds the arguments that several subcommands share, and gives the types of their values."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

from configs.safety.trust import add_trust


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Adds the recipe and its overrides."""
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, or the name of a shipped recipe, such as demo")
    parser.add_argument(
        "overrides",
        metavar="a.b=value",
        nargs="*",
        default=[],
        help="settings that replace the recipe's, by their path",
    )


def add_recipe_and_out(parser: argparse.ArgumentParser) -> None:
    """Adds the recipe, its overrides, its run directory and `--trust`."""
    add_recipe(parser)
    parser.add_argument("--out", metavar="DIR", help="run directory (default: runs/<name of the recipe>)")
    add_trust(parser)


def add_stage(parser: argparse.ArgumentParser) -> None:
    """Adds `--stage`, which chooses a stage of the recipe."""
    parser.add_argument("--stage", metavar="NAME", help="this stage of the recipe, not its base")


def add_ray(parser: argparse.ArgumentParser) -> None:
    """Adds `--ray-address`."""
    parser.add_argument("--ray-address", metavar="ADDRESS", help="prepare data on this Ray cluster (see launch/ray.sh)")


def add_ranks(parser: argparse.ArgumentParser) -> None:
    """Adds the recipe with its run directory, and `--ranks`."""
    add_recipe_and_out(parser)
    parser.add_argument(
        "--ranks",
        "--num_accelerators",
        "--num_gpus",
        dest="ranks",
        type=int,
        metavar="N",
        help="processes on this machine (default: train.ranks, else one per GPU, else one)",
    )


def add_restarts(parser: argparse.ArgumentParser) -> None:
    """Adds `--restarts` and `--pause`, the options of commands that restart training by themselves."""
    parser.add_argument(
        "--restarts", type=count, default=3, metavar="K", help="give up after K restarts without progress (default: 3)"
    )
    parser.add_argument(
        "--pause", type=seconds, default=5.0, metavar="SECONDS", help="wait before restarts (default: 5)"
    )


def run_directory(text: str) -> Path:
    """Returns the run directory that an argument names, `RUN` or `RUN:STAGE`; the type of every such argument."""
    from configs.schema.recipe import RecipeError, find_run

    try:
        return find_run(text)
    except RecipeError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds the run directory of a run or a stage."""
    parser.add_argument(
        "run",
        metavar="RUN",
        type=run_directory,
        help="run directory, such as runs/demo; RUN:STAGE for one of its stages",
    )


def add_run_and_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds the run directory, and `--step` or `--best`, which choose a checkpoint."""
    add_run(parser)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--step", dest="checkpoint_step", type=count, metavar="N", help="use the checkpoint of step N, not the newest"
    )
    choice.add_argument(
        "--best", action="store_true", help="use the checkpoint that is best by train.checkpoint.best_by (val/loss)"
    )


def add_server(parser: argparse.ArgumentParser, default_port: int) -> None:
    """Adds where a server listens, and what clients need to reach it."""
    parser.add_argument(
        "--port", type=port, default=default_port, metavar="N", help=f"port; 0: a free one (default: {default_port})"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1, this machine)"
    )
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a name by which clients call this server"
    )
    parser.add_argument(
        "--key-file", type=Path, metavar="FILE", help="key that clients send (default: $REPLICA_API_KEY, else none)"
    )


def count(text: str) -> int:
    """Reads a whole number of 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of 0 or more, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """Reads a whole number of 1 or more, of at most 9 digits."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text!r}")
    return int(text)


def port(text: str) -> int:
    """Reads a port of TCP; 0 means a free one."""
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)


def number(text: str) -> float:
    """Reads a finite number of 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"expected a number of 0 or more, got {text!r}")
    return value


def probability(text: str) -> float:
    """Reads a probability above 0."""
    value = number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a probability above 0 and up to 1, got {text!r}")
    return value


def seed(text: str) -> int:
    """Reads a whole number that fits 64 bits."""
    if not re.fullmatch(r"-?[0-9]{1,19}", text) or not -(2**63) <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number from -2**63 to 2**63 - 1, got {text!r}")
    return int(text)


def utf8(text: str) -> str:
    """Reads text that the shell gave in UTF-8."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # Python decodes bytes that are not UTF-8 to these
        raise argparse.ArgumentTypeError("expected text in UTF-8")
    return text


def seconds(text: str) -> float:
    """Reads a time in seconds, 0 or more."""
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected seconds, such as 5 or 0.5, got {text!r}")
    return float(text)

"""The subcommand that decodes a corpus by training again, and what `replica train --code` does."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from configs.safety.trust import add_trust
from launch.commands.arguments import add_recipe
from launch.commands.command import Command

if TYPE_CHECKING:
    from configs.schema.recipe import Recipe


def train_and_code(recipe: Recipe, file: Path) -> Path:
    """Trains in this process and codes the corpus; returns the file."""
    from launch.processes.training import count_ranks, environment_first
    from launch.run_stages import working_in
    from pretrain.coding.encode_corpus import refuse_file, train_coded
    from pretrain.coding.facts import refuse_recipe

    refuse_recipe(recipe)
    refuse_file(file)  # before a run directory is made
    if count_ranks(recipe) > 1:
        raise ValueError("one rank codes a corpus; use --ranks 1")
    with working_in(recipe), environment_first():
        train_coded(recipe, file)
    return file


def refuse_supervised(arguments: Namespace) -> None:
    """Raises `ValueError` for `--supervise`: coding cannot be restarted from a checkpoint."""
    if arguments.supervise:
        raise ValueError("--code and --supervise exclude each other: coding cannot go on from a checkpoint")


def _decode_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="what `replica train RECIPE --code FILE` wrote")
    add_recipe(parser)
    add_trust(parser)
    parser.add_argument(
        "-o", "--output", metavar="JSONL", type=Path, help="where the documents go (default: FILE with .jsonl added)"
    )
    parser.add_argument(
        "--anyway", action="store_true", help="try it with other software or on another machine than the file's"
    )


def replica_decode(arguments: Namespace) -> int:
    """`replica decode`: trains again from a coded corpus, and writes the documents that come out."""
    from launch.commands.loading import load_recipe
    from launch.processes.training import environment_first
    from pretrain.coding.decode_corpus import decode_corpus

    recipe, file = load_recipe(arguments), arguments.file
    out = arguments.output or file.with_name(f"{file.name}.jsonl")
    with environment_first():
        decode_corpus(file, recipe, out, arguments.anyway)
    print(out)
    return 0


DECODE = Command(
    "decode",
    "Get a corpus back from the file of `train --code`, by training again.",
    "replica decode shakespeare.coded shakespeare-char -o shakespeare.jsonl",
    _decode_arguments,
    replica_decode,
)

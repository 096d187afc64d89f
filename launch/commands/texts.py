"""The subcommands that read documents with a model: `replica score`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from launch.commands.arguments import add_run_and_checkpoint
from launch.commands.command import Command


def _score_arguments(parser: ArgumentParser) -> None:
    add_run_and_checkpoint(parser)
    parser.add_argument(
        "paths", metavar="PATHS", nargs="*", default=[], help="files, globs or URLs in any format that a recipe reads"
    )
    parser.add_argument(
        "--data", metavar="RECIPE", help="instead of PATHS: the documents that a recipe prepares, for its data.select"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="Parquet file to write the scores to")
    parser.add_argument("-f", "--force", action="store_true", help="replace a file that exists")
    parser.add_argument("--text-field", metavar="NAME", default="text", help="field with the text (default: text)")
    parser.add_argument("--lines", action="store_true", help="each line of a .txt file is a document")
    parser.set_defaults(overrides=[])


def replica_score(arguments: Namespace) -> int:
    """`replica score`: writes the code length of each document, and prints sums."""
    from launch.models.score_texts import score_texts

    score_texts(arguments)
    return 0


SCORE = Command(
    "score",
    "Score documents one by one: nats, tokens, bits per byte; write a Parquet file.",
    "replica score runs/demo --data web --out scores.parquet",
    _score_arguments,
    replica_score,
    resumes=True,
)

"""The subcommand that makes vectors of documents: `replica embed`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from launch.commands.arguments import add_run_and_checkpoint, positive
from launch.commands.command import Command


def _embed_arguments(parser: ArgumentParser) -> None:
    add_run_and_checkpoint(parser)
    parser.add_argument(
        "paths", metavar="PATHS", nargs="+", help="files, globs or URLs in any format that a recipe reads"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="Parquet file to write the vectors to")
    parser.add_argument(
        "--dims", type=positive, metavar="D", help="keep the first D principal components (default: all dimensions)"
    )
    parser.add_argument(
        "--like", metavar="FILE", type=Path, help="project as the vectors of FILE were, so that both can be compared"
    )
    parser.add_argument("-f", "--force", action="store_true", help="replace a file that exists")
    parser.add_argument("--text-field", metavar="NAME", default="text", help="field with the text (default: text)")
    parser.add_argument("--lines", action="store_true", help="each line of a .txt file is a document")


def replica_embed(arguments: Namespace) -> int:
    """`replica embed`: writes a vector for each document."""
    from launch.models.embed_texts import embed_texts

    embed_texts(arguments)
    return 0


EMBED = Command(
    "embed",
    "Write a vector for each document: the mean of the model's states, at will in fewer dimensions.",
    "replica embed runs/demo corpus/*.jsonl --dims 64 --out vectors.parquet",
    _embed_arguments,
    replica_embed,
)

"""The subcommands that exchange models with other programs: `replica export`, `replica import`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from launch.commands.arguments import add_run_and_checkpoint
from launch.commands.command import Command


def _export_arguments(parser: ArgumentParser) -> None:
    add_run_and_checkpoint(parser)
    parser.add_argument(
        "directory", metavar="TARGET", type=Path, help="a directory for Hugging Face, or a FILE.gguf for llama.cpp"
    )
    parser.add_argument(
        "--dtype", choices=["fp32", "bf16", "fp16"], default="fp32", help="dtype of the weights (default: fp32)"
    )
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="maximum file size (default: 5GB)")
    parser.add_argument(
        "--verify", action="store_true", help="compare logits and ids with transformers; exit with 1 when they differ"
    )


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


EXPORT = Command(
    "export",
    "Write a run's model as a Hugging Face directory or a GGUF file.",
    "replica export runs/demo exported/demo --dtype bf16 --verify",
    _export_arguments,
    replica_export,
)


def _import_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", type=Path, help="Hugging Face directory (GPT-2, Llama, Qwen3)")
    parser.add_argument("--out", metavar="RUN", type=Path, help="new run directory (default: runs/<name of DIR>)")
    parser.add_argument("--recipe", metavar="RECIPE", help="use the evaluation section of this recipe")


def replica_import(arguments: Namespace) -> int:
    """`replica import`: makes a run directory from a Hugging Face directory."""
    from launch.models.import_model import import_run

    out = arguments.out or Path("runs") / arguments.directory.resolve().name
    print(import_run(arguments.directory, out, arguments.recipe))
    return 0


IMPORT = Command(
    "import",
    "Make a run directory from a Hugging Face directory, for `eval` and `sample`.",
    "replica import exported/demo --out runs/imported --recipe demo",
    _import_arguments,
    replica_import,
)

"""The subcommands that code files by a model: `replica compress`, `replica decompress`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from launch.commands.arguments import add_run, add_run_and_checkpoint, positive
from launch.commands.command import Command


def _add_files(parser: ArgumentParser, default: str) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help="file, or - for standard input; several: one by one")
    parser.add_argument("-o", "--out", metavar="OUT", help=f"output, or - for standard output (default: {default})")
    parser.add_argument("-f", "--force", action="store_true", help="replace an output that exists")


def _compress_arguments(parser: ArgumentParser) -> None:
    add_run_and_checkpoint(parser)
    _add_files(parser, "FILE.replica")
    parser.add_argument(
        "--no-verify", dest="verify", action="store_false", help="do not decode the output in a fresh process"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to compute (default: cpu)")
    parser.add_argument("--threads", type=positive, metavar="N", help="threads of torch (default: its own choice)")
    parser.add_argument(
        "--streams",
        type=positive,
        metavar="N",
        help="pieces of the text that are coded side by side (default: by its length)",
    )


def replica_compress(arguments: Namespace) -> int:
    """`replica compress`: codes files by a checkpoint's predictions."""
    from launch.models.coding_files import compress_files

    compress_files(arguments)
    return 0


COMPRESS = Command(
    "compress",
    "Compress a file by the model's predictions, and check that it comes back.",
    "replica compress runs/demo book.txt -o book.replica",
    _compress_arguments,
    replica_compress,
)


def _decompress_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    _add_files(parser, "FILE without .replica")
    parser.add_argument("-t", "--test", action="store_true", help="write nothing; tell whether the file comes back")


def replica_decompress(arguments: Namespace) -> int:
    """`replica decompress`: brings files back, by the checkpoint that coded them."""
    from launch.models.coding_files import decompress_files

    decompress_files(arguments)
    return 0


DECOMPRESS = Command(
    "decompress",
    "Bring back a file that `replica compress` wrote.",
    "replica decompress runs/demo book.replica -o book.txt",
    _decompress_arguments,
    replica_decompress,
)

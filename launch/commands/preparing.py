"""The subcommands that prepare data: `replica data`, `replica tokenizer`."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from launch.commands.arguments import add_ray, add_recipe, add_recipe_and_out, add_stage
from launch.commands.command import Command

if TYPE_CHECKING:
    from configs.schema.recipe import Recipe


def _data_arguments(parser: ArgumentParser) -> None:
    add_recipe_and_out(parser)
    add_stage(parser)
    parser.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="try the rules on N documents of every source, and write a page with the effects",
    )
    add_ray(parser)


def replica_data(arguments: Namespace) -> int:
    """`replica data`: makes documents -> verdicts -> tokenizer -> shards, or a page on a sample."""
    from launch.commands.loading import load_recipe
    from launch.planning.checks import check
    from launch.run_stages import data_stage, working_in

    recipe = load_recipe(arguments)
    if arguments.sample is not None:
        return _sample_data(recipe, arguments.sample)
    check(recipe, trains_here=False)
    with working_in(recipe):
        print(data_stage(recipe))
    return 0


def _sample_data(recipe: Recipe, documents: int) -> int:
    import webbrowser

    from data_prep.stages.sample import sample

    if documents < 1:
        raise ValueError(f"--sample {documents}: give the number of documents to try, such as 200")
    opened = False
    table: list[str] = []
    for page, funnel in sample(recipe, documents):
        table = [
            f"{row['source']:16} {row['stage']:14} {row['reason']:28} {row['documents']:8,} {row['bytes']:12,} bytes"
            for row in funnel
        ]
        print(page, flush=True)
        if not opened and sys.stdout.isatty() and (os.environ.get("DISPLAY") or sys.platform == "darwin"):
            opened = webbrowser.open(page.resolve().as_uri())
    print("\n".join(table))  # of the whole sample: the page alone shows the first look
    return 0


DATA = Command(
    "data",
    "Turn raw text into clean, deduplicated, counted documents, a tokenizer and token shards.",
    "replica data demo --sample 200",
    _data_arguments,
    replica_data,
    resumes=True,
)


def _tokenizer_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("action", choices=["compare"], help="compare vocabularies")
    add_recipe(parser)
    parser.add_argument(
        "--sizes", default="8k,16k,32k", metavar="N,…", help="BPE vocabulary sizes (default: 8k,16k,32k)"
    )
    parser.add_argument("--kinds", default="bpe", metavar="KIND,…", help="any of bpe, char, byte, kmer (default: bpe)")
    parser.add_argument(
        "--files",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="also compare these tokenizer.json files",
    )
    parser.add_argument(
        "--sample-bytes", type=int, default=10_000_000, metavar="N", help="bytes to read (default: 10000000)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")


def replica_tokenizer(arguments: Namespace) -> int:
    """`replica tokenizer compare`: prints a table of vocabularies, measured on held-out text."""
    from configs.common.files import write_json
    from configs.schema.recipe import load
    from data_prep.stages.compare_vocabularies import as_json, compare, markdown, read_size

    sizes = [read_size(size) for size in arguments.sizes.split(",")]
    data = load(arguments.recipe, arguments.overrides).data
    measured, held_out = compare(data, sizes, arguments.kinds.split(","), arguments.files, arguments.sample_bytes)
    print(markdown(measured, held_out))
    if arguments.json is not None:
        write_json(arguments.json, as_json(measured, held_out))
    return 0


TOKENIZER = Command(
    "tokenizer",
    "Compare vocabularies on a sample of the recipe's own text, before choosing one.",
    "replica tokenizer compare demo --sizes 2k,4k --kinds bpe,byte",
    _tokenizer_arguments,
    replica_tokenizer,
)

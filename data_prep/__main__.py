"""Prepares data without the `replica` command.

`python -m data_prep run RECIPE [a.b=value …]` prepares it, `python -m data_prep verify DIR` checks it, and
`python -m data_prep classifier GOOD BAD --out FILE` trains a quality classifier for `data.quality.classifier`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from configs.common.exit_codes import add_debug, run_command
from configs.safety.trust import add_trust, trusting
from configs.schema.recipe import load
from data_prep.stages.pipeline import prepare
from data_prep.stages.verify import verify


def _run(arguments: argparse.Namespace) -> int:
    out = {} if arguments.out is None else {"out": arguments.out}
    with trusting(arguments.trust):
        manifest = prepare(load(arguments.recipe, arguments.overrides, out))
    for split, sources in (("train", manifest.train), ("validation", manifest.validation)):
        tokens, documents = (sum(getattr(source, key) for source in sources) for key in ("tokens", "documents"))
        print(f"{split}: {documents:,} documents, {tokens:,} tokens of {manifest.vocab_size:,} kinds")
    print(f"data: {manifest.directory}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    print(verify(Path(arguments.directory)))
    return 0


def _classifier(arguments: argparse.Namespace) -> int:
    from data_prep.documents.classifier import train

    model = train(arguments.good, arguments.bad)
    model.save(arguments.out)
    print(f"{arguments.out}: {model.report}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m data_prep", description="From raw files to token shards.")
    add_debug(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="documents -> dedup -> tokenizer -> shards; does only what is missing")
    run.add_argument("recipe", help="recipe file")
    run.add_argument("overrides", nargs="*", help="settings, as data.workers=4")
    run.add_argument("--out", help="run directory; the data goes to its data/")
    add_trust(run)
    run.set_defaults(function=_run)
    check = commands.add_parser("verify", help="recompute hashes and counts of prepared data")
    check.add_argument("directory", help="data directory, such as runs/demo/data")
    check.set_defaults(function=_verify)
    judge = commands.add_parser("classifier", help="train a quality classifier from two sets of example documents")
    judge.add_argument("good", type=Path, help="file or folder of good examples, in any format that sources may have")
    judge.add_argument("bad", type=Path, help="file or folder of bad examples")
    judge.add_argument("--out", type=Path, required=True, help="model file, for data.quality.classifier.path")
    judge.set_defaults(function=_classifier)
    for command in (run, check, judge):
        add_debug(command)
    arguments = parser.parse_args(argv)
    return run_command(lambda: int(arguments.function(arguments)), getattr(arguments, "debug", False))


if __name__ == "__main__":
    sys.exit(main())

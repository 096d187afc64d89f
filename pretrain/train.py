"""The one entry to training: `deepspeed pretrain/train.py --recipe R [a.b=value …]`, or plain `python` as one process.

Exit codes: those of `configs.door`, and 75 (EX_TEMPFAIL) when SIGTERM or Ctrl-C stopped training early: the state is
saved, and the same command continues from there.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from configs.door import add_debug, run_door
from configs.recipe import Recipe, load
from pretrain.checkpoint import is_finished

STOPPED_EARLY = 75
# Every rank meets the same mistake of the user; the others wait, so that the launcher ends them before they repeat it.
_OTHER_RANKS_WAIT_SECONDS = 3.0


def train(recipe: Recipe) -> bool:
    """Trains the recipe's model on its prepared data, from the newest checkpoint if there is one.

    Returns True when all steps are made, at once if they already were; False when a signal stopped it after saving.

    Raises:
        ValueError: without prepared data, with a checkpoint of something else, or with settings this machine cannot do.
    """
    if is_finished(recipe):
        return True
    from pretrain.session import run  # torch and DeepSpeed take seconds to import

    return run(recipe)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Train the model of a recipe on its prepared data; resumes by itself.")
    parser.add_argument("--recipe", required=True, help="YAML file")
    parser.add_argument("--out", help="run directory; otherwise the recipe's `out`, or runs/<name>")
    parser.add_argument(
        "--local_rank", help=argparse.SUPPRESS
    )  # the deepspeed launcher adds it; the environment says so
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="settings that replace the recipe's")
    add_debug(parser)
    options = parser.parse_intermixed_args(arguments)
    overrides = options.overrides + ([f"out={options.out}"] if options.out else [])
    return run_door(lambda: _command(options.recipe, overrides), getattr(options, "debug", False))


def _command(recipe: str, overrides: list[str]) -> int:
    try:
        return 0 if train(load(recipe, overrides)) else STOPPED_EARLY
    except ValueError:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(_OTHER_RANKS_WAIT_SECONDS)
        raise


if __name__ == "__main__":
    sys.exit(main())

"""Starts training: `deepspeed pretrain/train.py --recipe R [a.b=value …]`, or plain `python` as one process.

Exit codes: those of `configs.common.exit_codes`; 75 (EX_TEMPFAIL) when SIGTERM, SIGUSR1 or Ctrl-C stopped training
early: the state is saved, and the same command continues from there (before the first step, where there is nothing to
save, SIGTERM ends it with 143 and Ctrl-C with 130); 76 (EX_PROTOCOL) when another rank is gone or stuck: the same
command continues from the newest checkpoint; 128 + n when signal n came twice.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from configs.common.exit_codes import STOPPED_EARLY, add_debug, run_command
from configs.safety.trust import add_trust, trusting
from configs.schema.recipe import Recipe, check_name, load
from pretrain.checkpoint.compatible import check_finished, check_parents
from pretrain.metrics.start_times import Laps
from pretrain.signals import StoppedEarly

# Every rank meets the same mistake of the user; the others wait, so that the launcher ends them before they repeat it.
_OTHER_RANKS_WAIT_SECONDS = 3.0


def train(recipe: Recipe, laps: Laps | None = None) -> bool:
    """Trains the recipe's model on its prepared data, from the newest checkpoint if there is one.

    Returns True when all steps are made, at once if they already were. `laps` has run since the start, for what is said
    about the time until the first step.

    Raises:
        StoppedEarly: when a signal stopped it, after saving.
        ValueError: without prepared data, with a checkpoint of something else, before the parents of a stage have
            finished, or with settings this machine cannot do.
    """
    if check_finished(recipe):
        return True
    check_parents(recipe)
    from pretrain.metrics.evaluated import find_evaluator  # torch and DeepSpeed take seconds to import
    from pretrain.session import run

    return run(recipe, laps, find_evaluator(recipe))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Train the model of a recipe on its prepared data; resumes by itself.")
    parser.add_argument("--recipe", required=True, help="YAML file")
    parser.add_argument("--out", help="run directory; otherwise the recipe's `out`, or runs/<name>")
    parser.add_argument(
        "--local_rank", help=argparse.SUPPRESS
    )  # the deepspeed launcher adds it; the environment says so
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="settings that replace the recipe's")
    add_trust(parser)
    add_debug(parser)
    options = parser.parse_intermixed_args(arguments)
    out = {} if options.out is None else {"out": options.out}

    def command() -> int:
        with trusting(options.trust):
            return _command(options.recipe, options.overrides, out)

    return run_command(command, getattr(options, "debug", False))


def _command(recipe: str, overrides: list[str], literal: dict[str, str | int]) -> int:
    laps = Laps(since_process_start=True)
    try:
        loaded = load(recipe, overrides, literal)
        check_name(recipe, loaded, overrides)
        train(loaded, laps)
        return 0
    except StoppedEarly:
        return STOPPED_EARLY
    except ValueError:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(_OTHER_RANKS_WAIT_SECONDS)
        raise


if __name__ == "__main__":
    sys.exit(main())

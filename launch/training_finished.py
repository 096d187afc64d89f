"""Tells shell scripts whether training is finished: `python -m launch.training_finished RUN` exits with 0 or 75."""

from __future__ import annotations

import sys

from configs.common.exit_codes import STOPPED_EARLY, run_command
from configs.common.notices import say
from configs.schema.recipe import load_run
from pretrain.checkpoint.compatible import is_finished
from pretrain.checkpoint.manifest import newest


def main() -> int:
    """Returns the exit code for the run directory on the command line; prints the newest checkpoint if unfinished."""
    if len(sys.argv) != 2:
        raise ValueError("usage: python -m launch.training_finished RUN")
    recipe = load_run(sys.argv[1])
    if is_finished(recipe):
        return 0
    info = newest(recipe.run_directory)
    say(f"training is not finished: newest checkpoint {info.directory.name if info else 'none'}")
    return STOPPED_EARLY


if __name__ == "__main__":
    sys.exit(run_command(main))

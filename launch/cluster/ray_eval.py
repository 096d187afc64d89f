"""Implements `launch/ray.sh eval RUN`: one evaluation on the nodes of a Ray cluster, each with the ranks of training.

Each rank runs `replica eval RUN`, as under every launcher. It is not started again after a loss: the same command goes
on with the answers that were kept.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from configs.common.exit_codes import add_debug, run_command
from configs.common.layout import RESULTS
from configs.common.notices import say
from configs.safety.trust import add_trust, trust_options, trusting
from configs.schema.recipe import load_run
from eval.parts import DIRECTORY as SCORES
from launch.cluster.ray_cluster import (
    SETTINGS,
    joined,
    nodes_that_fit,
    resources,
    run_ranks,
    signals_noted,
    start_of,
)
from launch.commands.arguments import add_run_and_checkpoint, positive
from launch.processes.evaluation import raise_for, stamp_of


def evaluate_on(run: Path, words: Sequence[str], address: str, asked: int | None) -> Path:
    """Evaluates a run on a running Ray cluster; returns the path of its results.

    Args:
        run: the run directory, which all nodes see.
        words: further arguments of `replica eval`.
        address: address of the cluster, or `auto`.
        asked: number of nodes; None: all.

    Raises:
        ValueError: when the cluster cannot be reached or has too few nodes.
        ScoresFailed, ScoresBroken: some scores failed; rank 0 has printed the reason.
        KeyboardInterrupt, SystemExit: after a signal, when all ranks have ended; 75 for SIGTERM and SIGUSR1.
    """
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    results, ranks = run / RESULTS, load_run(run).train.ranks
    (run / SCORES).mkdir(exist_ok=True)
    before = stamp_of(results)
    with signals_noted() as received, joined(address) as ray:
        placement = nodes_that_fit(resources(ray), ranks, asked or 1)
        placement = replace(placement, nodes=min(asked or placement.nodes, placement.nodes))
        say(f"evaluating on {placement}")
        # A single rank is no rank of a launcher to `replica eval`, and would start those of training.
        single = ["--ranks", "1"] if placement.nodes * placement.ranks == 1 else []
        command = ["-u", "-m", "launch.cli", "eval", str(run.resolve()), *words, *single]
        start = start_of(command, run / SCORES, placement.ranks)
        code = run_ranks(ray, start, placement, received, lambda: stamp_of(results) != before)
    raise_for(code, str(placement), stamp_of(results) != before)
    return results


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="launch/ray.sh eval", description="One evaluation on a Ray cluster.")
    add_run_and_checkpoint(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="evaluation.a=value", help="settings that replace the run's, by their path"
    )
    parser.add_argument("--again", action="store_true", help="score everything again, not only changed parts")
    parser.add_argument("--nodes", type=positive, metavar="N", help="number of nodes (default: all of the cluster)")
    parser.add_argument(
        "--ray-address", default="auto", metavar="ADDRESS", help="address of the cluster (default: this machine's)"
    )
    add_trust(parser)
    add_debug(parser)
    options = parser.parse_intermixed_args()
    step = [] if options.checkpoint_step is None else ["--step", str(options.checkpoint_step)]
    flags = [*(["--best"] if options.best else []), *(["--again"] if options.again else [])]

    def command() -> int:
        run = load_run(options.run).run_directory
        with trusting(options.trust):
            words = [*step, *flags, *trust_options(), *options.overrides]
            print(evaluate_on(run, words, options.ray_address, options.nodes))
        return 0

    return run_command(command, getattr(options, "debug", False))


if __name__ == "__main__":
    sys.exit(main())

"""Implements `launch/ray.sh train RECIPE`: one training run on the nodes of a Ray cluster, by Ray Train.

`launch/cluster/ray_cluster.py` runs the ranks. This module decides whether to restart, and on how many nodes. The
global batch must divide over the ranks. A newer checkpoint counts as progress.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from configs.common.exit_codes import add_debug, run_command
from configs.common.notices import say
from configs.safety.trust import add_trust, trust_options, trusting
from configs.schema.batch_plan import solve_batch
from configs.schema.recipe import RESOLVED_NAME, Recipe, check_name, load
from launch.cluster.ray_cluster import (
    SETTINGS,
    Placement,
    joined,
    nodes_that_fit,
    raise_stopped,
    resources,
    run_ranks,
    signals_noted,
    start_of,
)
from launch.cluster.ray_node import Start
from launch.commands.arguments import add_restarts
from launch.planning.checks import check
from launch.processes.supervise import until_finished
from launch.processes.training import TRAIN_SCRIPT
from launch.run_stages import working_in
from pretrain.checkpoint.compatible import is_finished
from pretrain.checkpoint.manifest import newest
from pretrain.reliability.rank_heartbeat import LOST_RANK


def place_ranks(recipe: Recipe, cluster: Sequence[Mapping[str, float]], asked: int | None, restart: bool) -> Placement:
    """Chooses nodes and ranks for an attempt.

    Args:
        recipe: `train.ranks` is the number of ranks per node; null: the smallest number of GPUs of a node with GPUs,
            else one.
        cluster: resources of each node, as Ray counts them (CPU, GPU). If any node has GPUs, nodes without are not
            used.
        asked: number of nodes; None: all.
        restart: use as many of the remaining nodes as the batch divides over. A first start needs all that are asked.

    Raises:
        ValueError: when there are fewer nodes than asked for, or the batch cannot be divided.
    """
    found = nodes_that_fit(cluster, recipe.train.ranks, 1 if restart else asked or 1)
    most = min(asked or found.nodes, found.nodes)
    for nodes in range(most, 0, -1):
        try:
            solve_batch(recipe.train, nodes * found.ranks)
        except ValueError:
            if not restart or nodes == 1:
                raise
            continue
        return replace(found, nodes=nodes)
    raise AssertionError(most)


def train_on(recipe: Recipe, address: str, nodes: int | None, restarts: int, pause: float) -> Path:
    """Trains on a running Ray cluster to the last step, and restarts after lost nodes and ranks.

    Args:
        recipe: the run directory must contain its resolved form.
        address: address of the cluster, or `auto`.
        nodes: number of nodes at the first start; None: all. A restart uses the remaining ones.
        restarts: number of consecutive restarts without a newer checkpoint.
        pause: seconds before each restart.

    Returns:
        The directory of the last checkpoint.

    Raises:
        ValueError: when the cluster cannot be reached or has too few nodes, or training cannot continue.
        KeyboardInterrupt, SystemExit: after a signal, when all ranks have ended; 75 for SIGTERM and SIGUSR1.
    """
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    began = False

    def attempt() -> int:
        nonlocal began
        if received:
            raise_stopped(received)
        try:
            with joined(address) as ray:
                placement = place_ranks(recipe, resources(ray), nodes, restart=began)
                say(f"training on {placement}")
                return run_ranks(ray, _start(recipe, placement), placement, received, lambda: is_finished(recipe))
        except ValueError as error:
            if not began:
                raise
            print(f"error: {error}", file=sys.stderr)  # the next restart may find more nodes
            return LOST_RANK
        finally:
            began = True

    with signals_noted() as received:
        return until_finished(recipe, restarts, pause, attempt, lambda: "the nodes that are left")


def _start(recipe: Recipe, placement: Placement) -> Start:
    run = recipe.run_directory.resolve()
    words = ("-u", str(TRAIN_SCRIPT), "--recipe", str(run / RESOLVED_NAME), "--out", str(run), *trust_options())
    return start_of(words, run, placement.ranks)


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="launch/ray.sh train", description="One training run on a Ray cluster.")
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file; its data must be prepared (replica data)")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="settings that replace the recipe's")
    parser.add_argument("--out", metavar="DIR", help="run directory, on a file system that all nodes share")
    parser.add_argument("--nodes", type=int, metavar="N", help="number of nodes (default: all of the cluster)")
    parser.add_argument(
        "--ray-address", default="auto", metavar="ADDRESS", help="address of the cluster (default: this machine's)"
    )
    add_restarts(parser)
    add_trust(parser)
    add_debug(parser)
    options = parser.parse_intermixed_args()
    if options.nodes is not None and options.nodes < 1:
        parser.error(f"--nodes {options.nodes}: give the number of nodes, 1 or more")

    def command() -> int:
        recipe = load(options.recipe, options.overrides, {} if options.out is None else {"out": options.out})
        check_name(options.recipe, recipe, options.overrides)
        check(recipe, trains_here=False, reads_sources=False)
        with trusting(options.trust), working_in(recipe):
            if not is_finished(recipe):
                train_on(recipe, options.ray_address, options.nodes, options.restarts, options.pause)
            found = newest(recipe.run_directory)
            assert found is not None  # `train_on` ends without an error only when it is there
            print(found.directory)
        return 0

    return run_command(command, getattr(options, "debug", False))


if __name__ == "__main__":
    sys.exit(main())

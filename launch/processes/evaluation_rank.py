"""Takes part in an evaluation as one of the ranks that a launcher started.

The ranks speak over gloo, on GPUs too: what they exchange are small Python objects, and gloo tells at once when another
rank has ended. Only weights that are divided between ranks (`eval/reading/divided.py`) go over NCCL.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from configs.common.exit_codes import BUG, USER_ERROR, explain
from configs.schema.recipe import load_run
from eval.parts import DIRECTORY as SCORES
from eval.reading.opening import Place
from eval.suite import evaluate
from pretrain.checkpoint.choice import Choice
from pretrain.parallel.collectives import background_group, gather
from pretrain.parallel.lockstep import Lockstep
from pretrain.parallel.ranks import Ranks, limit_threads, placed_ranks
from pretrain.parallel.rendezvous import open_store
from pretrain.phases import CurrentPhase
from pretrain.reliability.lost_rank import sign_of_a_lost_rank
from pretrain.reliability.rank_heartbeat import LOST_RANK, RankHeartbeat, Words

_MEETING = timedelta(minutes=10)  # all ranks must have started by then
# The launcher ends the other ranks when one has ended with an error. Rank 0 prints it, and needs this time.
_OTHER_RANKS_WAIT_SECONDS = 3.0
_WORDS = Words("part", "goes on: answers that were given are kept")
# Of launchers. Libraries would take them for ranks of their own.
_HIDDEN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


def evaluate_as_rank(run: Path, overrides: Sequence[str], choice: Choice, again: bool) -> Path | None:
    """Evaluates together with the other ranks; returns the path of the results on rank 0, None on others.

    Args:
        run: the run directory. A rank that does not see it fails, and so do the others.
        overrides: as those below, see `eval.suite.evaluate`. All ranks must be given the same.
        choice: the checkpoint.
        again: do not reuse stored scores.

    Raises:
        ValueError: see `eval.suite.evaluate`; on rank 0 alone, as those below.
        ScoresFailed: some scores failed.
        ScoresBroken: some scores failed by a bug.
        SystemExit: with the exit code of the error, on other ranks. They print nothing.
    """
    with placed_ranks() as ranks, _joined(ranks) as (lockstep, phases):
        if not lockstep.is_main:
            logging.getLogger("replica").setLevel(logging.ERROR)
        try:
            place = _placed(lockstep, ranks)
            with _watched(run, lockstep, phases) as directory:
                path = evaluate(directory, overrides, choice=choice, again=again, place=place)
        except Exception as error:
            if lockstep.is_main:
                raise
            _leave_quietly(error)
    return path if ranks.rank == 0 else None


def _leave_quietly(error: Exception) -> NoReturn:
    time.sleep(_OTHER_RANKS_WAIT_SECONDS)
    raise SystemExit(BUG if explain(error) is None else USER_ERROR)


def device_of(ranks: Ranks, visible: int) -> torch.device:
    """Returns the device of this rank: the GPU with its number on this machine, or the CPU where there is no GPU.

    Args:
        ranks: of this process.
        visible: GPUs that this process sees. A launcher may show each rank one GPU, its own.

    Raises:
        ValueError: when this machine has fewer GPUs than ranks.
    """
    if not visible:
        return torch.device("cpu")
    if visible == 1:
        return torch.device("cuda", 0)
    if ranks.local_rank >= visible:
        raise ValueError(
            f"{ranks.local_count} ranks were started on {socket.gethostname()}, which has {visible} GPUs; start one "
            "rank for each GPU"
        )
    return torch.device("cuda", ranks.local_rank)


def check_devices(devices: Sequence[tuple[str, str, str]]) -> None:
    """Compares the devices of all ranks: host, kind (`cpu`, `cuda`), and the identity of a GPU.

    Raises:
        ValueError: when two ranks would share a GPU, or only some ranks have one.
    """
    if len({kind for _, kind, _ in devices}) > 1:
        rank, host = next((rank, host) for rank, (host, kind, _) in enumerate(devices) if kind == "cpu")
        raise ValueError(f"rank {rank} on {host} sees no GPU, others do; look at CUDA_VISIBLE_DEVICES and its driver")
    first: dict[tuple[str, str], int] = {}
    for rank, (host, kind, identity) in enumerate(devices):
        other = first.setdefault((host, identity), rank)
        if kind != "cpu" and other != rank:
            raise ValueError(f"ranks {other} and {rank} share a GPU of {host}; start one rank for each GPU")


def _placed(ranks: Lockstep, own: Ranks) -> Place:
    """Chooses this rank's device, after a look at those of the others."""
    with ranks.together("the devices"):
        device = device_of(own, torch.cuda.device_count())
        identity = ""
        if device.type == "cuda":
            torch.cuda.set_device(device)
            identity = str(torch.cuda.get_device_properties(device).uuid)
        check_devices(ranks.exchange((socket.gethostname(), device.type, identity), "devices"))
    return Place(ranks, device)


@contextmanager
def _joined(ranks: Ranks) -> Iterator[tuple[Lockstep, CurrentPhase]]:
    """Joins the ranks of the evaluation, and leaves at the end. Inside, libraries see no sign of ranks."""
    limit_threads(ranks)
    already = dist.is_initialized()
    if not already:
        # NCCL makes its connections when it is first used.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store = open_store(ranks, _MEETING)
        own: dict[str, Any] = {} if store is None else {"store": store, "rank": ranks.rank, "world_size": ranks.count}
        dist.init_process_group(backend, timeout=_MEETING, **own)
    for name in _HIDDEN:
        os.environ.pop(name, None)  # `placed_ranks` puts them back
    phases = CurrentPhase()
    try:
        with background_group() as group:

            def exchange(value: Any) -> list[Any]:
                return gather(value, group)

            yield Lockstep(ranks.rank, ranks.count, exchange, ranks.local_rank, phases.enter, _end_as_lost), phases
    finally:
        if not already and dist.is_initialized():
            dist.destroy_process_group()


def _end_as_lost(error: Exception) -> None:
    """Ends this process when another rank has ended before there are signs of life to read."""
    if sign_of_a_lost_rank(error) is None:
        return
    sys.stderr.write(f"error: another rank has ended ({str(error).strip().splitlines()[0][:300]}); see its message\n")
    sys.stderr.flush()
    os._exit(LOST_RANK)


@contextmanager
def _watched(run: Path, ranks: Lockstep, phases: CurrentPhase) -> Iterator[Path]:
    """Gives signs of life in `scores/ranks/` of the run, and ends the process when a rank is gone or stuck."""
    with ranks.together("the start"):
        recipe = load_run(run)
        directory = recipe.run_directory
        heartbeat = RankHeartbeat(directory / SCORES, recipe.train.watch, ranks.rank, ranks.count, phases, _WORDS)

    def lost(error: Exception) -> None:
        if sign_of_a_lost_rank(error) is not None:
            heartbeat.lost(str(error))

    ranks.lost = lost
    with heartbeat.watching():
        yield directory
        ranks.exchange(None, "the end")  # a rank that ends earlier would look like one that is gone

"""Finds rank and world size from the variables of deepspeed, torchrun or Slurm.

`deepspeed` and `torchrun` set RANK, WORLD_SIZE, LOCAL_RANK and the rendezvous; `srun` sets SLURM_*; plain `python` sets
nothing and is one process.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from configs.schema.train import Train

DEFAULT_PORT = 29500


@dataclass(frozen=True)
class Ranks:
    """Numbers of this process and of the others of the run."""

    rank: int  # of all processes
    count: int  # all processes
    local_rank: int  # of the processes on this machine: the GPU it uses
    local_count: int  # the processes on this machine


def is_launched() -> bool:
    """Tells whether a launcher started this process as one of several ranks: deepspeed, torchrun, or srun.

    The script of a Slurm job is no rank: there, Slurm sets the number of a job's tasks, and no step.
    """
    environment = os.environ
    if "RANK" in environment:
        return int(environment.get("WORLD_SIZE", "1")) > 1
    tasks = int(environment.get("SLURM_NTASKS", "1"))
    return tasks > 1 and "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment


def find_ranks() -> Ranks:
    """Reads the environment, and completes it so that the rendezvous works under `srun` as well.

    Raises:
        ValueError: when the launcher's variables are incomplete.
    """
    environment = os.environ
    if "RANK" not in environment and int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        environment["RANK"] = environment["SLURM_PROCID"]
        environment["WORLD_SIZE"] = environment["SLURM_NTASKS"]
        environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
        # 16(x2),8 on uneven nodes; every node of a training job has as many as the first.
        environment["LOCAL_WORLD_SIZE"] = environment["SLURM_TASKS_PER_NODE"].split("(")[0].split(",")[0]
        if "MASTER_ADDR" not in environment:
            environment["MASTER_ADDR"] = _first_slurm_host(environment["SLURM_JOB_NODELIST"])
        environment.setdefault("MASTER_PORT", str(DEFAULT_PORT + int(environment["SLURM_JOB_ID"]) % 10_000))
    if "RANK" not in environment:
        environment.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    missing = [name for name in ("WORLD_SIZE", "LOCAL_RANK") if name not in environment]
    if missing:
        raise ValueError(f"RANK is set, but {', '.join(missing)} is not; unset RANK, or start through a launcher")
    count = int(environment["WORLD_SIZE"])
    local_count = int(environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or count)
    return Ranks(int(environment["RANK"]), count, int(environment["LOCAL_RANK"]), local_count)


@contextmanager
def placed_ranks() -> Iterator[Ranks]:
    """`find_ranks`, with the environment as it was afterwards: other libraries take RANK for a rendezvous to join."""
    before = dict(os.environ)
    try:
        yield find_ranks()
    finally:
        os.environ.clear()
        os.environ.update(before)


def check_ranks(ranks: Ranks, train: Train) -> None:
    """Raises `ValueError` when fewer (or more) processes run on this machine than the recipe asks for."""
    if train.ranks is not None and train.ranks != ranks.local_count:
        raise ValueError(
            f"train.ranks asks for {train.ranks} processes on this machine, but {ranks.local_count} were started; "
            f"start with `deepspeed --num_accelerators {train.ranks} pretrain/train.py …`, or change train.ranks"
        )


def limit_threads(ranks: Ranks) -> None:
    """Gives each process on a CPU machine its share of the cores, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ and ranks.local_count > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks.local_count))


def _first_slurm_host(nodes: str) -> str:
    command = ["scontrol", "show", "hostnames", nodes]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]

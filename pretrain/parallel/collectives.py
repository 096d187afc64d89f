"""Runs collectives of all ranks beside those of a training step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

# A rank that writes or fetches a checkpoint of terabytes may take this long; a rank that died is noticed at once.
BACKGROUND_TIMEOUT = timedelta(hours=2)


def gather(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Every rank's value, on every rank; waits for all of them. `group`: process group; default: the world."""
    values: list[Any] = [None] * dist.get_world_size()
    if len(values) == 1:
        return [value]
    dist.all_gather_object(values, value, group=group)
    return values


@contextmanager
def background_group() -> Iterator[dist.ProcessGroup | None]:
    """A process group of all ranks for a thread that works beside training; None for a single process.

    Its collectives never meet training's, and may wait for slow disks longer than training may wait for a rank.
    """
    if dist.get_world_size() == 1:
        yield None
        return
    group = dist.new_group(backend="gloo", timeout=BACKGROUND_TIMEOUT)
    try:
        yield group
    finally:
        dist.destroy_process_group(group)


def set_timeouts(timeout: timedelta) -> None:
    """Sets the timeout of every process group: DeepSpeed makes some of its own, always with torch's half an hour."""
    if dist.get_world_size() > 1:
        for group in dist.distributed_c10d._world.pg_map:
            dist.distributed_c10d._set_pg_timeout(timeout, group)

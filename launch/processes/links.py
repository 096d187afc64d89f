"""Measures links between ranks for `replica doctor`: all-reduce, every pair, clocks. All ranks must call it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

Pair = tuple[int, int]
_SMALL_BYTES = 8
_PINGS = 10


def rounds(count: int) -> Iterator[list[Pair]]:
    """Groups all pairs of `count` ranks into rounds with each rank at most once (circle method of round robins)."""
    ring: list[int | None] = [*range(count), *([None] if count % 2 else [])]
    for _ in range(len(ring) - 1):
        half = len(ring) // 2
        couples = zip(ring[:half], reversed(ring[half:]), strict=True)
        yield sorted((min(a, b), max(a, b)) for a, b in couples if a is not None and b is not None)
        ring = [ring[0], ring[-1], *ring[1:-1]]


def measure_links(device: Any, megabytes: int, chosen: list[int]) -> dict[str, Any]:
    """Measures bandwidth (GB/s) and latency (ms): an all-reduce over all ranks, and exchanges of pairs of `chosen`.

    The all-reduce bandwidth is the bus bandwidth of nccl-tests: 2 (n - 1) / n x bytes / time.
    """
    import torch
    import torch.distributed as dist

    rank, count = dist.get_rank(), dist.get_world_size()
    small = torch.zeros(_SMALL_BYTES // 4, device=device)
    large = torch.zeros(megabytes * 250_000, device=device)

    def timed(work: Any, times: int) -> float:
        work()
        _settle(device)
        began = time.perf_counter()
        for _ in range(times):
            work()
        _settle(device)
        return (time.perf_counter() - began) / times

    latency = timed(lambda: dist.all_reduce(small), _PINGS)
    seconds = timed(lambda: dist.all_reduce(large), 2)
    own: dict[Pair, tuple[float, float]] = {}
    for couples in rounds(len(chosen)):
        for first, second in ((chosen[a], chosen[b]) for a, b in couples):
            if rank in (first, second):
                other = second if rank == first else first
                ping = timed(lambda other=other: _exchange(small, other), _PINGS)
                long = timed(lambda other=other: _exchange(large, other), 1)
                own[first, second] = (megabytes / 1e3 / long, ping * 1e3)
        dist.barrier()
    gathered: list[Any] = [None] * count
    dist.all_gather_object(gathered, own)
    pairs = {pair: figures for part in gathered for pair, figures in part.items()}
    return {
        "all_reduce_gb_per_s": 2 * (count - 1) / count * megabytes / 1e3 / seconds,
        "all_reduce_ms": latency * 1e3,
        "pairs": [
            {"ranks": list(pair), "gb_per_s": pairs[pair][0], "ms": pairs[pair][1]} for pair in sorted(pairs)
        ],
    }  # fmt: skip


def _exchange(tensor: Any, other: int) -> None:
    """Sends and receives the tensor at the same time, on both ranks."""
    import torch
    import torch.distributed as dist

    received = torch.empty_like(tensor)
    operations = [dist.P2POp(dist.isend, tensor, other), dist.P2POp(dist.irecv, received, other)]
    for request in dist.batch_isend_irecv(operations):
        request.wait()


def _settle(device: Any) -> None:
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def clock_offsets(device: Any) -> list[float]:
    """Measures the seconds that each rank's clock is ahead of rank 0's, by the fastest of some exchanges (as NTP)."""
    import torch
    import torch.distributed as dist

    rank, count = dist.get_rank(), dist.get_world_size()
    offsets = [0.0] * count
    for other in range(1, count):
        best = float("inf")
        for _ in range(_PINGS if rank in (0, other) else 0):
            stamp = torch.zeros(1, dtype=torch.float64, device=device)
            if rank == 0:
                sent = time.time()
                dist.send(stamp, other)
                dist.recv(stamp, other)
                took = time.time() - sent
                if took < best:
                    best, offsets[other] = took, float(stamp) - (sent + took / 2)
            else:
                dist.recv(stamp, 0)
                dist.send(torch.full_like(stamp, time.time()), 0)
    return offsets

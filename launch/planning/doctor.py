"""Implements `replica doctor`: checks versions, devices, links between ranks, disks, clocks and limits before a run.

Every rank measures its node. Rank 0 compares the measurements and prints the findings. Ranks come from the environment
(`srun`, `deepspeed`, `torchrun`), or are processes started on this machine.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from configs.common.files import write_text
from configs.common.versions import installed
from configs.schema.recipe import Recipe
from pretrain.parallel.ranks import Ranks, find_ranks

PINS = Path(__file__).resolve().parents[2] / "constraints.txt"
PACKAGES = ("gpt-replica", "torch", "deepspeed", "numpy", "safetensors", "tokenizers")
JOIN = timedelta(seconds=60)
_SHARED_SECONDS = 10.0
# fp32 weights and two moments
_CHECKPOINT_BYTES_PER_PARAMETER = 12
_LEAST_FILES, _FEW_FILES = 256, 1024
_LEAST_SHM = 64 * 2**20
_SKEW_WARN, _SKEW_FAIL = 1.0, 30.0
_SLOW_LINK = 1 / 3


@dataclass(frozen=True)
class Finding:
    """One row of the table; `verdict` is ok, warn or fail. A fail will break the run."""

    what: str
    value: str
    verdict: str = "ok"


# ---------------------------------------------------------------------------------------------------- what a rank finds
def measure_node(recipe: Recipe | None, ranks: Ranks, quick: bool) -> dict[str, Any]:
    """Measures this rank's node: host, versions, devices, limits, and the speed of the run directory."""
    import torch

    gpus = []
    for number in range(torch.cuda.device_count()):
        shown = torch.cuda.get_device_properties(number)
        gpus.append({"name": shown.name, "bytes": shown.total_memory})
    report: dict[str, Any] = {
        "host": socket.gethostname(),
        "node": os.environ.get("SLURMD_NODENAME") or os.environ.get("GROUP_RANK") or socket.gethostname(),
        "rank": ranks.rank,
        "local_count": ranks.local_count,
        "versions": _versions(),
        "gpus": gpus,
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "shm_bytes": shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else None,
    }
    if recipe is not None and ranks.local_rank == 0:
        report["disk"] = _disk(recipe.run_directory, 16 if quick else 256)
    return report


def _versions() -> dict[str, str]:
    import torch

    versions = {"python": ".".join(map(str, sys.version_info[:3])), "cuda": torch.version.cuda or "none"}
    if torch.cuda.is_available():
        versions["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    for name in PACKAGES:
        versions[name] = installed(name) or "missing"
    return versions


def _disk(directory: Path, megabytes: int) -> dict[str, Any]:
    """Returns free bytes, and MB/s of a flushed write and of a read without page cache; or the error."""
    content = os.urandom(1_000_000)
    file = directory / f".doctor-{uuid.uuid4().hex[:8]}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        with file.open("wb") as stream:
            for _ in range(megabytes):
                stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
            written = time.perf_counter() - began
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        with file.open("rb", buffering=0) as stream:
            while stream.read(4_000_000):
                pass
        read = time.perf_counter() - began
        return {"free": shutil.disk_usage(directory).free, "write": megabytes / written, "read": megabytes / read}
    except OSError as error:
        return {"error": f"{directory}: {error.strerror}"}
    finally:
        file.unlink(missing_ok=True)


def checkpoint_bytes(recipe: Recipe) -> int | None:
    """Estimates the disk space of the kept checkpoints and one being written, in bytes; None if not known yet."""
    from launch.planning.show import meta_model
    from pretrain.sizes.embedding_rows import embedding_rows

    rows = embedding_rows(recipe)
    model = meta_model(recipe, rows) if rows else None
    if model is None:
        return None
    return model.parameter_count().total * _CHECKPOINT_BYTES_PER_PARAMETER * (recipe.train.checkpoint.keep + 1)


# ------------------------------------------------------------------------------------------------------------- together
def measure(recipe: Recipe | None, ranks: Ranks, quick: bool) -> dict[str, Any]:
    """Collects measurements of all ranks: their nodes, links, clocks and access to the run directory."""
    report = measure_node(recipe, ranks, quick)
    if ranks.count == 1:
        return {"ranks": [report], "clocks": [0.0], "links": None}
    import torch
    import torch.distributed as dist

    from launch.processes.links import clock_offsets, measure_links

    with _joined(ranks) as device:
        reports: list[Any] = [None] * ranks.count
        dist.all_gather_object(reports, report)
        nodes: dict[str, int] = {}
        for number, one in enumerate(reports):
            nodes.setdefault(one["node"], number)
        chosen = list(range(ranks.count))
        if quick:
            chosen = list(nodes.values()) if len(nodes) > 1 else chosen[:4]
        if recipe is not None:
            seen: list[Any] = [None] * ranks.count
            dist.all_gather_object(seen, _sees_file(recipe.run_directory, ranks.rank))
            for one, sees in zip(reports, seen, strict=True):
                one["sees_run_directory"] = sees
        clocks = [torch.zeros(ranks.count, dtype=torch.float64, device=device)]
        clocks[0] += torch.tensor(clock_offsets(device), dtype=torch.float64, device=device)
        dist.broadcast(clocks[0], 0)
        links = measure_links(device, 8 if quick else 64, chosen)
        return {"ranks": reports, "clocks": clocks[0].tolist(), "links": links}


@contextmanager
def _joined(ranks: Ranks) -> Iterator[Any]:
    import torch
    import torch.distributed as dist

    from pretrain.parallel.rendezvous import open_store

    gpu = torch.cuda.device_count() > ranks.local_rank
    if gpu:
        torch.cuda.set_device(ranks.local_rank)
    backend = "nccl" if gpu else "gloo"
    if (store := open_store(ranks, JOIN)) is None:
        dist.init_process_group(backend, timeout=JOIN)
    else:
        dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.count, timeout=JOIN)
    try:
        yield torch.device("cuda", ranks.local_rank) if gpu else torch.device("cpu")
    finally:
        dist.destroy_process_group()


def _sees_file(directory: Path, rank: int) -> bool:
    """Tells whether a new file of rank 0 appears on this node."""
    import torch.distributed as dist

    name = [uuid.uuid4().hex]
    dist.broadcast_object_list(name, 0)
    file = directory / f".doctor-{name[0]}"
    if rank == 0:
        directory.mkdir(parents=True, exist_ok=True)
        file.touch()
    dist.barrier()
    deadline = time.monotonic() + _SHARED_SECONDS
    while not (found := file.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    dist.barrier()
    if rank == 0:
        file.unlink(missing_ok=True)
    return found


# -------------------------------------------------------------------------------------------------------------- verdict
def compare(measured: dict[str, Any], nodes: int | None = None, need: int | None = None) -> list[Finding]:
    """Compares the measurements of `measure`; returns the findings.

    Args:
        measured: the result of `measure`.
        nodes: expected number of nodes; None: any.
        need: bytes of the checkpoints; None: not known.
    """
    reports = measured["ranks"]
    hosts = {report["node"] for report in reports}
    rows = [Finding("ranks", f"{len(reports)} on {len(hosts)} nodes ({', '.join(sorted(hosts))})")]
    if nodes is not None and len(hosts) != nodes:
        rows.append(Finding("nodes", f"{len(hosts)} reported, but --nodes expects {nodes}", "fail"))
    rows += _compare_versions(reports)
    rows += _compare_devices(reports)
    rows += _check_disks(reports, need)
    skew = max(map(abs, measured["clocks"]))
    rows.append(Finding("clock skew", f"{skew * 1e3:.1f} ms", _grade(skew, _SKEW_WARN, _SKEW_FAIL)))
    rows += _check_links(measured["links"])
    files = min(report["open_files"] for report in reports)
    rows.append(Finding("open files", f"{files} (ulimit -n)", _grade(-files, -_FEW_FILES, -_LEAST_FILES)))
    shm = [report["shm_bytes"] for report in reports if report["shm_bytes"] is not None]
    if shm:
        few = min(shm) < _LEAST_SHM
        bad = "fail" if any(report["gpus"] for report in reports) else "warn"  # NCCL keeps its buffers there
        rows.append(Finding("/dev/shm free", f"{min(shm) / 2**20:.0f} MiB", bad if few else "ok"))
    return rows


def _grade(value: float, warn: float, fail: float) -> str:
    return "fail" if value > fail else "warn" if value > warn else "ok"


def _compare_versions(reports: list[dict[str, Any]]) -> list[Finding]:
    pins = {}
    if PINS.is_file():
        lines = (line.partition("==") for line in PINS.read_text(encoding="utf-8").splitlines() if "==" in line)
        pins = {name: pinned for name, _, pinned in lines}
    rows = []
    for name in reports[0]["versions"]:
        values = sorted({report["versions"].get(name, "missing") for report in reports})
        pinned = pins.get(name)
        plain = values[0].partition("+")[0]
        if len(values) > 1:
            rows.append(Finding(name, f"differs between ranks: {', '.join(values)}", "fail"))
        elif values[0] == "missing":
            rows.append(Finding(name, "is not installed; `make setup` installs it", "fail"))
        elif pinned is not None and plain != pinned:
            rows.append(Finding(name, f"{values[0]}, but tested with {pinned}", "warn"))
        else:
            rows.append(Finding(name, values[0] + (", as pinned" if pinned else "")))
    return rows


def _compare_devices(reports: list[dict[str, Any]]) -> list[Finding]:
    kinds = {tuple((gpu["name"], gpu["bytes"]) for gpu in report["gpus"]) for report in reports}
    if kinds == {()}:
        return [Finding("devices", "no GPU: training on CPUs")]
    rows = []
    if len({gpu for kind in kinds for gpu in kind}) > 1 or () in kinds:
        rows.append(Finding("devices", "ranks see different GPUs, or some see none", "fail"))
    for report in reports:
        if report["local_count"] > len(report["gpus"]):
            text = f"{report['local_count']} ranks on {report['node']}, but {len(report['gpus'])} GPUs"
            rows.append(Finding("devices", text, "fail"))
            break
    name, size = next(iter(next(kind for kind in kinds if kind)))
    return [*rows, Finding("GPU", f"{name}, {size / 2**30:.0f} GiB")]


def _check_disks(reports: list[dict[str, Any]], need: int | None) -> list[Finding]:
    rows = []
    for report in reports:
        disk, where = report.get("disk"), f"run directory on {report['node']}"
        if report.get("sees_run_directory") is False:
            rows.append(Finding(where, "not shared: a file of rank 0 does not appear there", "fail"))
        if disk is None:
            continue
        if "error" in disk:
            rows.append(Finding(where, disk["error"], "fail"))
            continue
        text = f"{disk['free'] / 1e9:.1f} GB free, writes {disk['write']:.0f} MB/s, reads {disk['read']:.0f} MB/s"
        short = need is not None and disk["free"] < need
        wants = f"; the checkpoints need {need / 1e9:.2f} GB" if need is not None else ""
        rows.append(Finding(where, text + wants, "fail" if short else "ok"))
    return rows


def _check_links(links: dict[str, Any] | None) -> list[Finding]:
    if links is None:
        return []
    rows = [Finding("all-reduce", f"{links['all_reduce_gb_per_s']:.2f} GB/s, {links['all_reduce_ms']:.2f} ms")]
    if not links["pairs"]:
        return rows
    usual = statistics.median(pair["gb_per_s"] for pair in links["pairs"])
    worst = min(links["pairs"], key=lambda pair: pair["gb_per_s"])
    slow = worst["gb_per_s"] < usual * _SLOW_LINK
    text = (
        f"median {usual:.2f} GB/s; slowest {worst['gb_per_s']:.2f} GB/s, {worst['ms']:.2f} ms "
        f"between ranks {worst['ranks'][0]} and {worst['ranks'][1]}"
    )
    return [*rows, Finding(f"{len(links['pairs'])} pairs of ranks", text, "warn" if slow else "ok")]


# ------------------------------------------------------------------------------------------------------------- command
def diagnose(recipe: Recipe | None, nodes: int | None, quick: bool, file: Path | None) -> int:
    """Runs the checks on one rank; rank 0 prints the table, and returns 1 when a check failed."""
    ranks = find_ranks()
    began = time.monotonic()
    try:
        measured = measure(recipe, ranks, quick)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's network errors
        print(f"fail  the ranks cannot reach each other: {error}", flush=True)
        return 1
    if ranks.rank:
        return 0
    rows = compare(measured, nodes, checkpoint_bytes(recipe) if recipe is not None else None)
    width = max(len(row.what) for row in rows)
    for row in rows:
        print(f"{row.verdict:4}  {row.what:{width}}  {row.value}")
    broken = sum(row.verdict == "fail" for row in rows)
    print(f"{broken or 'nothing'} will break the run ({time.monotonic() - began:.1f} s)", flush=True)
    if file is not None:
        content = {**measured, "findings": [asdict(row) for row in rows]}
        write_text(file, json.dumps(content, indent=1) + "\n")
    return 1 if broken else 0


def local_ranks(recipe: Recipe | None, asked: int | None) -> int:
    """Returns the number of ranks to start: 1 (this process) under a launcher, else as asked or as in training."""
    import torch

    from launch.processes.training import count_ranks

    if "RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        return 1
    return asked or (count_ranks(recipe) if recipe is not None else max(1, torch.cuda.device_count()))


def on_this_machine(count: int, words: list[str]) -> int:
    """Starts `replica doctor` in `count` processes and waits; returns the worst exit code."""
    from launch.processes.training import free_port

    variables = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    variables["MASTER_PORT"] = str(free_port())
    command = [sys.executable, "-m", "launch.cli", "doctor", *words]
    processes = [
        subprocess.Popen(command, env={**os.environ, **variables, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]
    try:
        return max(process.wait(300) for process in processes)
    finally:
        for process in processes:
            process.kill()

"""Two ranks on two cores beside one rank on one core: tokens/s of the same model and global batch, each rank pinned.

    python benchmarks/scaling.py [--rounds 3] [a.b=value …]

`apart` is what the hardware allows: two trainings by themselves, one per core, at the same time, their tokens/s added.
Needs Linux (`taskset`), and the data that `benchmarks/train.py` prepares (made when it is not there).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from train import OURS, PEERS, RECIPE, ROOT, job_for, our_overrides, prepare

WAYS = {"one rank": 1, "two ranks": 2, "apart": 2}


def start(directory: Path, way: str, core: int, steps: int, given: list[str], port: int) -> subprocess.Popen[bytes]:
    """One process of a way, on its core; its result is `DIRECTORY/scaling-CORE.json`."""
    recipe = prepare(directory, given)
    job = job_for(recipe, OURS, directory, steps, 0, 1)
    job.out, job.batch = str(directory / f"scaling-{core}.json"), 2 * job.micro
    together = way == "two ranks"
    run = job.out if not together else str(directory / "scaling-0.json")
    job.recipe, job.spawned = str(RECIPE), time.time()
    job.overrides = [
        *our_overrides(job, [f"train.global_batch_size={job.batch}", *given], directory),
        f"out={run}.dir",
    ]
    Path(job.out).unlink(missing_ok=True)
    file = Path(job.out).with_suffix(".job")
    file.write_text(json.dumps(asdict(job)), encoding="utf-8")
    place = {"RANK": str(core), "WORLD_SIZE": "2", "LOCAL_RANK": str(core), "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": str(port)} if together else {}  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **place}
    command = ["taskset", "-c", str(core), sys.executable, str(PEERS / "run_replica.py"), str(file)]
    with Path(job.out).with_suffix(".log").open("w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def tokens_per_s(directory: Path, way: str, steps: int, given: list[str], limit: float) -> float:
    """Of all processes of a way together."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for left in directory.glob("scaling-*.json.dir"):
        shutil.rmtree(left)  # or the next run would go on from it
    processes = [start(directory, way, core, steps, given, port) for core in range(WAYS[way])]
    try:
        if any(process.wait(limit) for process in processes):
            log = (directory / "scaling-0.log").read_text(errors="replace")
            sys.exit(f"{way} failed:\n{log[-2000:]}")
    finally:
        for process in processes:
            process.kill()
    found: list[dict[str, Any]] = [
        json.loads((directory / f"scaling-{core}.json").read_text())
        for core in range(WAYS[way] if way == "apart" else 1)
    ]
    return float(sum(result["tokens_per_s"] for result in found))


def main() -> None:
    """All ways in turn; medians and ratios to one rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of a run, five of them to settle")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds after which a run is given up")
    parser.add_argument("--directory", type=Path, default=ROOT / "runs" / "benchmark-train")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="for our recipe")
    arguments = parser.parse_intermixed_args()
    directory = arguments.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    prepare(directory, arguments.overrides)
    rounds: list[dict[str, float]] = []
    for _ in range(arguments.rounds):
        rounds.append(
            {way: tokens_per_s(directory, way, arguments.steps, arguments.overrides, arguments.limit) for way in WAYS}
        )
        print(", ".join(f"{way} {speed:,.0f} tok/s" for way, speed in rounds[-1].items()), flush=True)
    for way in ("two ranks", "apart"):
        ratio = statistics.median(entry[way] / entry["one rank"] for entry in rounds)
        print(f"{way} / one rank: {ratio:.2f} (median of {len(rounds)})")


if __name__ == "__main__":
    main()

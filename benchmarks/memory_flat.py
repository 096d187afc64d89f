"""Whether data preparation's memory stays flat: peak RSS over a corpus and over one ten times as large.

Runs `python -m data_prep run` over generated text and adds up, several times a second, the memory of its whole process
tree with Ray's daemons (shared pages counted once: PSS). Exits 1 if the larger corpus needs 20% more.

    python benchmarks/memory_flat.py --megabytes 30
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
GROWTH = 10
LIMIT = 1.2


def write_corpus(directory: Path, megabytes: float, file_bytes: int = 10_000_000) -> None:
    """JSON lines of random documents over a vocabulary of 100,000 words that is used up early."""
    chance = random.Random(5)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 10))) for _ in range(100_000)]
    directory.mkdir(parents=True)
    written = number = 0
    while written < megabytes * 1e6:
        with (directory / f"{number:04d}.jsonl").open("w", encoding="utf-8") as stream:
            while stream.tell() < min(file_bytes, megabytes * 1e6 - written):
                stream.write(json.dumps({"text": " ".join(chance.choices(words, k=chance.randint(50, 800)))}) + "\n")
            written += stream.tell()
        number += 1


def tree_memory(marker: str) -> int:
    """Bytes of all processes whose environment holds `marker`."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (process / "environ").read_bytes():
                lines = (process / "smaps_rollup").read_text().splitlines()
                total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, ValueError):
            continue  # it ended meanwhile
    return total


def peak(directory: Path, out: Path, workers: int) -> int:
    """Peak bytes of one preparation."""
    out.mkdir()
    recipe = {
        "name": "memory",
        "out": str(out / "run"),
        "data": {
            "sources": [{"name": "s", "path": str(directory / "*.jsonl")}],
            "tokenizer": {"vocab_size": 8192, "sample_bytes": 5_000_000},
            "unit_bytes": 2_000_000,
            "shard_tokens": 2_000_000,
            "workers": workers,
        },
        "model": {"num_layers": 1, "hidden_size": 8, "num_heads": 1},
        "train": {"steps": 1},
    }
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    marker = f"{os.getpid()}-{time.time_ns()}"
    command = [sys.executable, "-m", "data_prep", "run", str(out / "recipe.yaml")]
    environment = {**os.environ, "MEMORY_FLAT": marker}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    highest = 0
    while process.poll() is None:
        highest = max(highest, tree_memory(marker))
        time.sleep(0.2)
    if process.returncode:
        sys.exit((process.stderr.read() if process.stderr else b"").decode())
    return highest


def main() -> None:
    """Prints both peaks and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=30, help="size of the smaller corpus")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    peaks = []
    with tempfile.TemporaryDirectory() as name:
        for factor in (1, GROWTH):
            corpus = Path(name) / f"corpus-{factor}"
            write_corpus(corpus, arguments.megabytes * factor)
            peaks.append(peak(corpus, Path(name) / f"out-{factor}", arguments.workers))
            print(f"{arguments.megabytes * factor:.0f} MB of text: peak {peaks[-1] / 1e6:.0f} MB", flush=True)
    ratio = peaks[1] / peaks[0]
    print(f"ratio {ratio:.3f}")
    sys.exit(ratio > LIMIT)


if __name__ == "__main__":
    main()

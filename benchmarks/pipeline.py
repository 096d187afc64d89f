"""The whole pipeline beside datatrove's: from .jsonl.zst to filtered, deduplicated token files; same files, same rules.

Both apply FineWeb's filters (Gopher repetition, Gopher quality, C4 without terminal punctuation, FineWeb), MinHash of
5-word shingles in 14 bands of 8, and encode with the same vocabulary, on the same two cores, one after the other.
Ours is `python -m data_prep run` with everything that comes with it: start of Ray, normalisation, exact duplicates,
verified pairs, counts, hashes of all files, the funnel page. datatrove's are its own five jobs. Printed per round: wall
clock, ratio, peak memory of all processes together (proportional set size), tokens written.

    python -m venv /tmp/venv-datatrove
    /tmp/venv-datatrove/bin/pip install 'datatrove[io,processing]==0.10.1' orjson spacy nltk
    python benchmarks/pipeline.py --peer /tmp/venv-datatrove/bin/python --megabytes 60 --rounds 3 FILE.jsonl.zst …
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.encode import make_vocabulary, our_command
from benchmarks.memory_flat import tree_memory
from benchmarks.minhash import BANDS, FILES, ROWS, split
from data_prep.tokens.shards import load_manifest

ROOT = Path(__file__).resolve().parent.parent
PEER = f"""
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster
from datatrove.pipeline.dedup import MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter
source, tokenizer, target, workers = sys.argv[1:]
config = MinhashConfig(n_grams=5, num_buckets={BANDS}, hashes_per_bucket={ROWS})
if __name__ == "__main__":
    kept = target + "/kept"
    for name, tasks, pipeline in (
        ("filters", {FILES}, [JsonlReader(source), GopherRepetitionFilter(), GopherQualityFilter(),
                              C4QualityFilter(filter_no_terminal_punct=False), FineWebQualityFilter(),
                              JsonlWriter(kept)]),
        ("signatures", {FILES}, [JsonlReader(kept), MinhashDedupSignature(target + "/signatures", config)]),
        ("buckets", {BANDS}, [MinhashDedupBuckets(target + "/signatures", target + "/buckets", config=config)]),
        ("clusters", 1, [MinhashDedupCluster(target + "/buckets", target + "/clusters", config=config)]),
        ("tokens", {FILES}, [JsonlReader(kept), MinhashDedupFilter(target + "/clusters"),
                             DocumentTokenizer(target + "/tokens", tokenizer, eos_token="<|endoftext|>",
                                               shuffle_documents=False)]),
    ):
        LocalPipelineExecutor(
            pipeline, tasks=tasks, workers=int(workers), logging_dir=target + "/logs-" + name
        ).run()
"""


# FineWeb's steps, but those that the peer's jobs here do not have.
STEPS = {
    "preset": "fineweb",
    "language": {"keep": []},
    "privacy": {"emails": False, "ip_addresses": False},
    "dedup": {"near": {"bands": BANDS, "rows": ROWS}},
}


# ----------------------------------------------------------------------------------------------------------- measuring
def measured(command: list[str], cores: list[int]) -> tuple[float, float]:
    """Wall seconds, and peak MiB of all processes of a command on these cores; stops with its output when it fails."""
    mark = f"REPLICA_BENCHMARK={os.getpid()}-{time.monotonic_ns()}"
    environment = {**os.environ, **dict([mark.split("=")]), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    peak, stop = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(1.0):
            peak = max(peak, tree_memory(mark) / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip
        seconds = time.monotonic() - started
    finally:
        stop.set()
        watcher.join()
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return seconds, peak


def peer_tokens(directory: Path) -> int:
    """Tokens that datatrove wrote, 2 bytes each."""
    return sum(file.stat().st_size for file in directory.rglob("*.ds")) // 2


def some(files: list[str], megabytes: float, directory: Path) -> float:
    """Documents of the files to .jsonl files, no more than so much text; returns the MB."""
    total = split(files, directory)
    for file in directory.iterdir():
        budget = megabytes * 1e6 / FILES
        kept = []
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
            budget -= len(json.loads(line)["text"].encode())
            if budget < 0:
                break
            kept.append(line)
        file.write_text("".join(kept), encoding="utf-8")
    return min(total, megabytes)


def main() -> None:
    """Prints a table and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--peer", required=True, help="python of an environment with datatrove")
    parser.add_argument("--megabytes", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[: given.workers]
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        megabytes = some(given.files, given.megabytes, work / "in")
        tokenizer = make_vocabulary(Path(given.files[0]), work / "tokenizer", 16384)
        (work / "peer.py").write_text(PEER)
        print(f"{megabytes:.0f} MB, {given.workers} workers")
        print("| round | ours s | datatrove s | ratio | ours MiB | datatrove MiB | our tokens | datatrove's |")
        print("|---|---:|---:|---:|---:|---:|---:|---:|")
        for number in range(given.rounds):
            mine, theirs = work / f"ours-{number}", work / f"peer-{number}"
            seconds, peak = measured(our_command(work / "in", tokenizer, mine, given.workers, STEPS), cores)
            command = [given.peer, str(work / "peer.py"), str(work / "in"), str(tokenizer), str(theirs)]
            peer_seconds, peer_peak = measured([*command, str(given.workers)], cores)
            ratios.append(peer_seconds / seconds)
            manifest = load_manifest(mine / "run" / "data")
            tokens = sum(source.tokens for source in [*manifest.train, *manifest.validation])
            print(
                f"| {number + 1} | {seconds:.1f} | {peer_seconds:.1f} | {ratios[-1]:.2f} "
                f"| {peak:.0f} | {peer_peak:.0f} | {tokens:,} | {peer_tokens(theirs / 'tokens'):,} |",
                flush=True,
            )
            for directory in (mine, theirs):
                shutil.rmtree(directory)
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()

"""MinHash deduplication against datatrove's four steps: .jsonl to .jsonl without near-duplicates, same files and shape.

Both get the same plain .jsonl files, one task a file, the same shingles (5 words), bands and rows, in a local pool of
processes. Ours: records to Parquet parts, stage `near` with verified pairs, what is left to .jsonl. datatrove:
MinhashDedupSignature, -Buckets, -Cluster, -Filter. Process time of all processes, and the peak of the largest one; the
two take turns.

    python -m venv /tmp/venv-datatrove
    /tmp/venv-datatrove/bin/pip install 'datatrove[io,processing]==0.10.1' orjson spacy nltk
    python benchmarks/minhash.py --peer /tmp/venv-datatrove/bin/python --rounds 3 FILE.jsonl.zst …
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs.schema.data import NearDuplicates
from configs.schema.sources import Source
from data_prep.dedup.near import NearDeduplication
from data_prep.documents.parts_writer import sorted_hashes
from data_prep.workers.parts import SCHEMA
from data_prep.workers.stage import Run, Stage
from data_prep.workers.verdicts import Part, remaining

BANDS, ROWS = 14, 8
FILES = 8
ROOT = Path(__file__).resolve().parent.parent
PEER = f"""
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
source, target, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = MinhashConfig(n_grams=5, num_buckets={BANDS}, hashes_per_bucket={ROWS})
if __name__ == "__main__":
    for name, tasks, pipeline in (
        ("signatures", {FILES}, [JsonlReader(source), MinhashDedupSignature(target + "/signatures", config)]),
        ("buckets", {BANDS}, [MinhashDedupBuckets(target + "/signatures", target + "/buckets", config=config)]),
        ("clusters", 1, [MinhashDedupCluster(target + "/buckets", target + "/clusters", config=config)]),
        ("filter", {FILES}, [JsonlReader(source), MinhashDedupFilter(target + "/clusters"),
                             JsonlWriter(target + "/left", compression=None)]),
    ):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=workers, logging_dir=target + "/logs-" + name).run()
"""


# ---------------------------------------------------------------------------------------------------------------- ours
def make_part(directory: Path, numbered: tuple[int, Path]) -> Part:
    """One .jsonl file as stage `documents` would leave it."""
    number, file = numbered
    name = f"000-{number:05d}-000000"
    rows, digests, sizes, pending = [], [], [], 0
    with (
        file.open(encoding="utf-8") as lines,
        pq.ParquetWriter(directory / f"{name}.parquet", SCHEMA, compression="zstd", compression_level=1) as writer,
    ):
        for line in lines:
            record = json.loads(line)
            encoded = record["text"].encode()
            rows.append((record["id"], record["text"], None, None, 0, 0, len(encoded)))
            digests.append(hashlib.blake2b(encoded, digest_size=16).digest())
            sizes.append(len(encoded))
            pending += len(encoded)
            if pending > 4 * 2**20:
                pending = 0
                write_rows(writer, rows)
        write_rows(writer, rows)
    with (directory / f"{name}.hashes.npy").open("wb") as stream:
        np.save(stream, sorted_hashes(digests, sizes))
    return Part(name, number, "s", directory, (), len(sizes), sum(sizes))


def write_rows(writer: pq.ParquetWriter, rows: list[tuple[Any, ...]]) -> None:
    """Writes and forgets rows."""
    if rows:
        arrays = [pa.array(column, kind.type) for column, kind in zip(zip(*rows, strict=True), SCHEMA, strict=True)]
        writer.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA))
        rows.clear()


def write_left(target: Path, part: Part) -> None:
    """What is left of a part, as .jsonl."""
    with (target / f"{part.name}.jsonl").open("w", encoding="utf-8") as out:
        for _, fields in remaining(part, ["id", "text"]):
            out.write(json.dumps(fields, ensure_ascii=False) + "\n")


def pooled(workers: int) -> Run:
    """Runs the units of a fresh stage in a pool of processes."""

    def run(label: str, function: Callable[[Any], Any], tasks: Sequence[Any]) -> None:
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            pool.map(function, tasks, chunksize=1)

    return run


def make_stage(directory: Path, kind: Any, parts: Sequence[Part], run: Run) -> tuple[Path, dict[str, Any]]:
    """Runs one verdict stage; returns its directory and manifest."""
    stage = Stage(directory / kind.name, {})
    stage.begin()
    extra = kind.make(stage, parts, run)
    units = [stage.unit(part.name) or {} for part in parts]
    manifest = stage.finish(extra, {name: known for unit in units for name, known in unit["files"].items()})
    return stage.directory, manifest


def ours(source: Path, target: Path, workers: int) -> None:
    """The whole way."""
    for name in ("documents", "left"):
        (target / name).mkdir(parents=True)
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        parts = pool.map(partial(make_part, target / "documents"), list(enumerate(sorted(source.iterdir()))), 1)
        directory, manifest = make_stage(
            target, NearDeduplication(NearDuplicates(bands=BANDS, rows=ROWS)), parts, pooled(workers)
        )
        print({key: manifest[key] for key in ("candidates", "verified")}, file=sys.stderr)
        left = [Part(p.name, p.number, p.source, p.documents, (directory,), p.rows, p.bytes) for p in parts]
        pool.map(partial(write_left, target / "left"), left, 1)


# ---------------------------------------------------------------------------------------------------------- comparison
def split(files: Sequence[str], directory: Path) -> float:
    """All documents of the files in turn to `FILES` .jsonl files; returns the MB of text."""
    from data_prep.documents.conversion import read_documents

    directory.mkdir()
    outs = [(directory / f"{number:05d}.jsonl").open("w", encoding="utf-8") for number in range(FILES)]
    total = number = 0
    for file in files:
        for document in read_documents(Source(name="s", path=file)):
            record = {"id": f"{number}", "text": document.text}
            outs[number % FILES].write(json.dumps(record, ensure_ascii=False) + "\n")
            total += len(document.text.encode())
            number += 1
    for out in outs:
        out.close()
    return total / 1e6


def measured(command: list[str]) -> tuple[float, float]:
    """CPU seconds of the command with all its processes, and the peak MiB of the largest."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:4]} failed; run it by hand to see why")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def documents_left(directory: Path) -> int:
    """Lines of all files."""
    return sum(file.read_bytes().count(b"\n") for file in directory.iterdir())


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="python of an environment with datatrove")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="datatrove hides the CPU time of more than one")
    parser.add_argument("files", nargs="+")
    given = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        megabytes = split(given.files, place / "in")
        (place / "peer.py").write_text(PEER)
        print(f"{megabytes:.1f} MB; {BANDS} bands of {ROWS}")
        print(
            "| round | ours MB/s of CPU | datatrove | ratio | ours MiB | datatrove MiB | we leave | datatrove leaves |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for number in range(given.rounds):
            mine, theirs = place / f"ours{number}", place / f"peer{number}"
            tail = [str(place / "in")]
            own = [sys.executable, __file__, "ours", *tail, str(mine), str(given.workers)]
            peer = [given.peer, str(place / "peer.py"), *tail, str(theirs), str(given.workers)]
            seconds, peak = measured(own)
            peer_seconds, peer_peak = measured(peer)
            ratios.append(peer_seconds / seconds)
            print(
                f"| {number + 1} | {megabytes / seconds:.2f} | {megabytes / peer_seconds:.2f} | {ratios[-1]:.1f} | "
                f"{peak:.0f} | {peer_peak:.0f} | {documents_left(mine / 'left')} | {documents_left(theirs / 'left')} |",
                flush=True,
            )
    print(f"median ratio {statistics.median(ratios):.1f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["ours"]:
        ours(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()

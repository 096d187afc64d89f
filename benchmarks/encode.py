"""Encoding speed against datatrove's `DocumentTokenizer`: .jsonl.zst to token files, same cores, vocabulary and files.

Ours is `python -m data_prep run` from nothing to shards: reading, normalisation, quality, encoding, sidecars, start and
end of Ray (exact dedup off, for the text is repeated to reach the size). datatrove reads, encodes and writes. The two
take turns, so that a machine that is busy with other things slows both.

    python -m venv /tmp/venv-datatrove
    /tmp/venv-datatrove/bin/pip install 'datatrove[io,processing]==0.10.1' orjson
    python benchmarks/encode.py --peer /tmp/venv-datatrove/bin/python --megabytes 170 --rounds 3 FILE.jsonl.zst …
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
import time
from pathlib import Path
from typing import Any

import yaml

from configs.schema.data import Tokenizer
from configs.schema.sources import Source
from data_prep.documents.conversion import read_documents
from data_prep.tokens.encode import segments
from data_prep.tokens.vocab import TOKENIZER_NAME
from data_prep.tokens.vocab_training import train_vocab

ROOT = Path(__file__).resolve().parent.parent
PEER = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
source, tokenizer, target, workers = sys.argv[1:]
if __name__ == "__main__":
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(source),
            DocumentTokenizer(target + "/tokens", tokenizer, eos_token="<|endoftext|>", shuffle_documents=False),
        ],
        tasks=int(workers), workers=int(workers), logging_dir=target + "/logs",
    ).run()
"""


def copy_inputs(files: list[Path], directory: Path, megabytes: float) -> float:
    """Copies files, from the first again when all are there, until they hold so much text; returns the MB."""
    directory.mkdir()
    sizes = [sum(len(d.text.encode()) for d in read_documents(Source(name="s", path=str(file)))) for file in files]
    total = number = 0
    while total < megabytes * 1e6:
        shutil.copy(files[number % len(files)], directory / f"{number:03d}-{files[number % len(files)].name}")
        total += sizes[number % len(files)]
        number += 1
    return total / 1e6


def make_vocabulary(file: Path, directory: Path, size: int) -> Path:
    """A byte-level BPE of the GPT-2 pattern, trained on up to 20 MB of a file."""
    texts = (chunk for d in read_documents(Source(name="s", path=str(file))) for chunk in segments(d.text, 65536))
    settings = Tokenizer(vocab_size=size)
    taken = (chunk for _, chunk in zip(range(300), texts, strict=False))
    train_vocab(settings, taken).save(directory)
    return directory / TOKENIZER_NAME


def our_command(inputs: Path, tokenizer: Path, target: Path, workers: int, data: dict[str, Any]) -> list[str]:
    """Writes a recipe with these settings of `data` into `target`; returns the command that runs it."""
    target.mkdir()
    recipe = {
        "name": "benchmark",
        "out": str(target / "run"),
        "data": {
            "sources": [{"name": "s", "path": str(inputs / "*")}],
            "tokenizer": {"kind": "file", "path": str(tokenizer)},
            "workers": workers,
            **data,
        },
        "model": {"num_layers": 1, "hidden_size": 8, "num_heads": 1},
        "train": {"steps": 1},
    }
    (target / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return [sys.executable, "-m", "data_prep", "run", str(target / "recipe.yaml")]


def seconds(command: list[str], cores: list[int]) -> float:
    """Wall clock of a command on these cores; stops with its output when it fails."""
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return time.monotonic() - started


def main() -> None:
    """Prints one line of JSON per round and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--peer", required=True, help="Python with datatrove 0.10.1")
    parser.add_argument("--megabytes", type=float, default=170)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--vocab-size", type=int, default=32768)
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[: arguments.workers]
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        megabytes = copy_inputs(arguments.files, work / "in", arguments.megabytes)
        tokenizer = make_vocabulary(arguments.files[0], work / "tokenizer", arguments.vocab_size)
        (work / "peer.py").write_text(PEER)
        for number in range(arguments.rounds):
            mine = work / f"ours-{number}"
            command = our_command(work / "in", tokenizer, mine, arguments.workers, {"dedup": {"exact": False}})
            ours = seconds(command, cores)
            target = work / f"peer-{number}"
            peer = [arguments.peer, str(work / "peer.py"), str(work / "in"), str(tokenizer), str(target)]
            theirs = seconds([*peer, str(arguments.workers)], cores)
            ratios.append(theirs / ours)
            speeds = {"ours_MB_per_s": round(megabytes / ours, 2), "datatrove_MB_per_s": round(megabytes / theirs, 2)}
            print(
                json.dumps({"round": number, "MB": round(megabytes, 1), **speeds, "ratio": round(ratios[-1], 2)}),
                flush=True,
            )
            shutil.rmtree(mine)
            shutil.rmtree(target)
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()

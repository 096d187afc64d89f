"""Training as the compressor: how long the file is, beside the logged code length, xz and zstd; and that it decodes.

    python benchmarks/online_code.py --corpus dna --bases 1000000 --out /tmp/online
    python benchmarks/online_code.py --corpus novels --out /tmp/online
    python benchmarks/online_code.py --tiny --out /tmp/online

`dna` takes the first bases of the genome of E. coli and the model of `configs/dna.yaml`; `novels` the first documents
of the novels and the model of `configs/demo.yaml`. One epoch, one process, one thread unless OMP_NUM_THREADS says
otherwise. Every command runs in a process of its own, so that decoding starts from nothing but the file and the recipe.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
import zstandard

from configs.common.files import read_json, write_json, write_text
from configs.schema.recipe import load
from data_prep.stages.pipeline import prepare_inline
from pretrain.metrics.metrics_file import read_metrics

ROOT = Path(__file__).resolve().parent.parent
REPLICA = "import sys; from launch.cli import main; sys.exit(main())"
TINY_MODEL = {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "context_length": 64}


def dna(bases: int) -> list[str]:
    """One document: the first bases of the genome."""
    packed = (ROOT / "configs" / "corpus" / "ecoli-k12-train.fa.gz").read_bytes()
    lines = gzip.decompress(packed).decode().splitlines()
    return ["".join(line for line in lines if not line.startswith(">"))[:bases]]


def novels(characters: int) -> list[str]:
    """The first documents of the novels, about so many characters, cut into pieces of a few pages."""
    packed = (ROOT / "configs" / "corpus" / "gutenberg-train.jsonl.zst").read_bytes()
    found: list[str] = []
    for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(packed), encoding="utf-8"):
        text = json.loads(line)["text"]
        found += [text[first : first + 10_000] for first in range(0, len(text), 10_000)]
        if sum(map(len, found)) >= characters:
            break
    return found


def write_recipe(directory: Path, options: argparse.Namespace) -> Path:
    """The corpus as JSON lines, and a recipe that trains on it for one epoch."""
    documents = dna(options.bases) if options.corpus == "dna" else novels(options.characters)
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
    write_text(directory / "corpus.jsonl", lines)
    base = yaml.safe_load((ROOT / "configs" / f"{'dna' if options.corpus == 'dna' else 'demo'}.yaml").read_text())
    train = {key: value for key, value in base["train"].items() if key not in ("tokens", "steps", "epochs")}
    data = {
        "sources": [{"name": options.corpus, "path": str(directory / "corpus.jsonl"), "licence": "public domain"}],
        "tokenizer": base["data"]["tokenizer"],
        "preset": "none",
        "validation_fraction": 0.05 if options.corpus == "novels" else 0.0,
    }
    content = {
        "name": f"online-{options.corpus}",
        "data": data,
        "model": {**base["model"], **(TINY_MODEL if options.tiny else {})},
        "train": {
            **train,
            "epochs": 1,
            "zero": {"stage": 0},
            "log_every": 1,
            "checkpoint": {"every": 10**6, "keep": 1},
        },
    }
    file = directory / f"online-{options.corpus}.yaml"
    write_text(file, yaml.safe_dump(content, sort_keys=False))
    return file


def replica(*words: str) -> float:
    """Runs a command in a process of its own; returns its seconds."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", REPLICA, *words], check=True, env=environment, stdout=sys.stderr)
    return time.monotonic() - began


def measured(recipe: Path, directory: Path) -> dict[str, Any]:
    """Encodes, decodes and compares; the bytes, bits and seconds."""
    run, file, back = directory / "run", directory / "corpus.coded", directory / "back.jsonl"
    common = (str(recipe), "--out", str(run))
    prepare_inline(load(recipe, literal={"out": str(run)}))
    seconds = {"train and encode": replica("train", *common, "--code", str(file))}
    seconds["train and decode"] = replica("decode", str(file), str(recipe), "-o", str(back))
    decoded = [json.loads(line) for line in back.read_text(encoding="utf-8").splitlines()]
    given = [json.loads(line)["text"] for line in (directory / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    text = "\n".join(line["text"] for line in decoded).encode()
    record = read_json(run / "coding.json")
    logged = [entry["train/code_length_bits"] for entry in read_metrics(run) if "train/code_length_bits" in entry]
    return {
        "documents": len(decoded),
        "same documents": sorted(line["text"] for line in decoded) == sorted(given),
        "text_bytes": record["text_bytes"],
        "record": record,
        "logged_bits": logged[-1],
        "xz": len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)),
        "zstd": len(zstandard.ZstdCompressor(level=19).compress(text)),
        "seconds": seconds,
    }


def table(found: dict[str, Any]) -> str:
    """The outcome as Markdown."""
    record, text = found["record"], found["text_bytes"]
    parts, bits, symbols = record["parts"], record["bits"], record["symbols"]

    def row(name: str, size: float) -> str:
        return f"| {name} | {size:,.0f} | {8 * size / text:.4f} |"

    by_model, batches = sum(bits.values()), bits["batches"] + bits["first tokens of windows"]
    lines = [
        "| what | bytes | bits per byte of text |",
        "|---|---:|---:|",
        row("text", text),
        row("file", record["file_bytes"]),
        row("- of it the stream", parts["stream"]),
        row("- of it the tokenizer", parts["tokenizer"]),
        row("- of it the header", parts["header"]),
        row("stream by -log2 p of the coding steps", by_model / 8),
        row("logged `train/code_length_bits`", found["logged_bits"] / 8),
        row("xz -9e", found["xz"]),
        row("zstd -19", found["zstd"]),
        "",
        "| kind of token | tokens | bits | bits per token |",
        "|---|---:|---:|---:|",
        *(f"| {kind} | {count:,} | {bits[kind]:,.0f} | {bits[kind] / count:.4f} |" for kind, count in symbols.items()),
        "",
        f"Batches and first tokens against the logged code length: {batches / found['logged_bits'] - 1:+.3%}. "
        f"Stream against -log2 p: {8 * parts['stream'] / by_model - 1:+.4%}. "
        f"{found['documents']} documents, equal to the corpus: {found['same documents']}. "
        + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found["seconds"].items())
        + ".",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", choices=["dna", "novels"], default="dna")
    parser.add_argument("--bases", type=int, default=1_000_000)
    parser.add_argument("--characters", type=int, default=1_000_000)
    parser.add_argument("--tiny", action="store_true", help="20,000 bases, a small model: seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/online"), help="a new directory")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.bases = options.characters = 20_000
    directory = options.out.resolve()
    directory.mkdir(parents=True, exist_ok=False)
    found = measured(write_recipe(directory, options), directory)
    write_json(directory / "online_code.json", found)
    write_text(directory / "online_code.md", table(found) + "\n")
    print(table(found))
    return 0 if found["same documents"] else 1


if __name__ == "__main__":
    sys.exit(main())

"""A tiny prepared data directory and recipe, and ways to start training on them, for tests of `pretrain`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from configs.common.files import write_json
from configs.schema.chat import END_OF_TEXT, MASK
from configs.schema.data import Tokenizer
from configs.schema.recipe import Recipe, load
from data_prep.tokens.shards import beside
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from pretrain.metrics.metrics_file import read_metrics
from pretrain.parallel.ranks import Ranks
from tests.parts.small_shards import write_shard

ROOT = Path(__file__).parents[2]
# Text that a tiny model learns something from in a few steps, and that differs between places.
SENTENCES = [
    f"The {a} {b} sees {c} {a}s. " for a in ("cat", "dog", "owl") for b in ("old", "shy", "red") for c in range(9)
]


# What the objectives read; those of reinforcement learning read prompts.
_SHAPES = {"sft": "alpaca", "reward": "pairs", "dpo": "pairs"}


def prepare_data(
    directory: Path,
    sources: dict[str, int] | None = None,
    weights: dict[str, float] | None = None,
    masked: bool = False,
) -> Path:
    """Writes byte-level shards of about that many tokens a source, and a validation split, with a manifest.

    `masked`: the vocabulary has the mask token.
    """
    vocab = train_vocab(Tokenizer(kind="byte", special_tokens=[END_OF_TEXT, *[MASK] * masked]), [])
    vocab.save(directory / "tokenizer")
    weight = (weights or {}).get
    splits = {
        "train": [
            _source(directory, vocab, name, n, weight(name)) for name, n in (sources or {"tiny": 20_000}).items()
        ],
        "validation": [_source(directory, vocab, "held-out", 1_500, None)],
    }
    content = {"fingerprint": f"{sources}", "tokenizer_fingerprint": vocab.fingerprint, "splits": splits, "funnel": []}
    write_json(directory / "manifest.json", content)
    return directory


def _source(directory: Path, vocab: Vocab, name: str, tokens: int, weight: float | None) -> dict[str, Any]:
    documents: list[list[int]] = []
    while sum(map(len, documents)) < tokens:
        number = len(documents)
        text = f"{name} {number}: " + "".join(SENTENCES[(number * 7 + k * k) % len(SENTENCES)] for k in range(12))
        documents.append([*vocab.encode(text), vocab.eod_id])
    # Two shards, so that windows cross their border.
    half = len(documents) // 2
    shards = []
    for number, part in enumerate([documents[:half], documents[half:]]):
        prefix = directory / name / f"{number:05d}"
        write_shard(prefix, part, vocab.size)
        shards.append({"prefix": f"{name}/{number:05d}", "bin_bytes": beside(prefix, ".bin").stat().st_size})
    count = sum(map(len, documents))
    return {
        "name": name,
        "weight": weight,
        "shards": shards,
        "tokens": count,
        "documents": len(documents),
        "bytes": count,
    }


def write_recipe(file: Path, data: Path, **train: Any) -> Path:
    """A recipe for a model of 30,000 parameters in fp32; `train` replaces settings of that section."""
    kind = (train.get("objective") or {}).get("kind")
    shape = "text" if kind in (None, "masked_diffusion") else _SHAPES.get(kind, "gsm8k")
    special = {} if kind is None else {"special_tokens": [END_OF_TEXT, MASK] if kind == "masked_diffusion" else "chat"}
    content = {
        "name": "tiny",
        "out": str(file.parent / "run"),
        "data": {
            "sources": [{"name": "tiny", "path": "none.txt", "shape": shape}],
            "directory": str(data),
            "tokenizer": {"kind": "byte", **special},
        },
        "model": {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "context_length": 32},
        "train": {
            "steps": 20,
            "global_batch_size": 8,
            "precision": "fp32",
            "optimizer": {"lr": 3e-3},
            "log_every": 1,
            "checkpoint": {"every": 1000},
            "validation": {"every": 1000},
            "tensorboard": False,
            **train,
        },
    }
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def tiny_recipe(directory: Path, data: Path, **train: Any) -> Recipe:
    """`write_recipe`, loaded."""
    return load(write_recipe(directory / "recipe.yaml", data, **train))


def start_training(
    recipe: Path, *overrides: str, launcher: tuple[str, ...] = (), **variables: str
) -> subprocess.Popen[str]:
    """Starts `python pretrain/train.py`, or the same under a launcher, as a user would: one thread a rank.

    `variables` are put into its environment.
    """
    command = [
        *(launcher or (sys.executable,)),
        str(ROOT / "pretrain" / "train.py"),
        "--recipe",
        str(recipe),
        *overrides,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= variables
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def train_to_end(
    recipe: Path, *overrides: str, launcher: tuple[str, ...] = (), seconds: float = 280, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs training and waits; the caller looks at the exit code."""
    process = start_training(recipe, *overrides, launcher=launcher, **variables)
    out, err = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def as_ranks(count: int, work: Callable[[Ranks, Callable[[Any], list[Any]]], Any]) -> list[Any]:
    """What `work(ranks, gather)` gives on each of `count` ranks that are threads of this process."""
    barrier, values = threading.Barrier(count, timeout=60), [None] * count

    def on(rank: int) -> Any:
        def gather(value: Any) -> list[Any]:
            values[rank] = value
            barrier.wait()
            gathered = list(values)
            barrier.wait()
            return gathered

        return work(Ranks(rank, count, rank, count), gather)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(on, range(count)))


def metric_lines(run: Path, key: str) -> dict[int, float]:
    """Step -> value of one measurement in metrics.jsonl; a step that stands twice is an error."""
    values: dict[int, float] = {}
    for entry in read_metrics(run):
        if key in entry:
            assert entry["step"] not in values, f"step {entry['step']} stands twice"
            values[entry["step"]] = entry[key]
    return values

"""A run directory as training and evaluation leave it, made up in a moment, for tests of the report."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.schema.data import Data
from configs.schema.evaluation import Report
from configs.schema.model import Model
from configs.schema.recipe import Recipe, save
from configs.schema.sources import Source
from configs.schema.train import Train
from eval.results import Result, Results, Sample

GATES = [
    "perplexity/heldout/bits_per_byte < compression/heldout/xz_bits_per_byte",
    "perplexity/heldout/bits_per_byte < 2.4",
    "benchmark/replica_copa/acc >= 0.5",
]


def fake_recipe(directory: Path, gates: list[str] | None = None) -> Recipe:
    return Recipe(
        name="demo",
        out=str(directory),
        data=Data(sources=[Source(name="gutenberg", path="/nowhere/books.jsonl.zst")]),
        model=Model(num_layers=6, hidden_size=256, num_heads=4, context_length=256),
        train=Train(steps=1200),
        report=Report(title="Demo: a few English novels", gates=GATES if gates is None else gates),
    )


def _result(name: str, value: float, width: float, n: int, unit: str, **more: Any) -> Result:
    higher = unit in {"acc", "BLEU", "chrF2"}
    return Result(name, value, value - width, value + width, n, unit, higher, f"bootstrap over {n} documents", **more)


def fake_samples() -> list[Sample]:
    king = " there was a <b>king</b> & a queen, who had\nno children."
    times = "It was the best of times, it was the worst of times, it was the age of wisdom,"
    model = " it was the epoch of the house, and the old man said that he would not go."
    truth = " it was the age of foolishness, it was the epoch of belief."
    first = "The first words of heldout, continued"
    chinese = ("学而时习之，不亦说乎？", "学习的时候，不是很高兴吗？", "greedy", "学了又时常温习和练习，不是很愉快吗？")
    return [
        Sample("prompt", "Prompt 1", "Once upon a time", king, "temperature 0.8"),
        Sample("document", first, times, model, "temperature 0.8, top-p 0.95", truth),
        Sample("translation", "classical-zh, pair 1", *chinese),
    ]


def fake_results() -> Results:
    per_byte = "bits per byte of normalised text"
    accuracy = {"chance": 0.5, "task_version": "1.0", "signature": "lm-eval 0.4.13, 0-shot"}
    signature = {"signature": "nrefs:1|bs:1000|seed:12345|case:mixed|eff:no|tok:zh|smooth:exp|version:2.6.0"}
    results = [
        _result(
            "perplexity/heldout/bits_per_byte", 2.214, 0.046, 28, per_byte,
            note="612,345 bytes, 171,234 tokens, 128 new tokens per window",
        ),
        _result("perplexity/heldout/perplexity", 214.3, 12.1, 28, "perplexity per token"),
        _result("compression/heldout/gzip_bits_per_byte", 3.021, 0, 28, per_byte),
        _result("compression/heldout/xz_bits_per_byte", 2.562, 0, 28, per_byte),
        _result("compression/heldout/zstd_bits_per_byte", 2.641, 0, 28, per_byte),
        _result("benchmark/replica_copa/acc", 0.57, 0.097, 100, "acc", **accuracy),
        _result("benchmark/replica_piqa/acc", 0.552, 0.043, 500, "acc", **accuracy),
        _result("benchmark/replica_piqa/acc_norm", 0.541, 0.043, 500, "acc", **accuracy),
        _result("benchmark/replica_winogrande/acc", 0.508, 0.043, 500, "acc", **accuracy),
        _result("benchmark/replica_lambada/acc", 0.024, 0.012, 500, "acc", task_version="1.0"),
        _result("translation/classical-zh/bleu", 3.1, 0.9, 300, "BLEU", note="4.0 of 4 shots fit", **signature),
        _result("translation/classical-zh/chrf", 6.2, 0.7, 300, "chrF2", **signature),
        _result("translation/classical-zh/copy_bleu", 24.9, 1.9, 300, "BLEU", **signature),
    ]  # fmt: skip
    rows = [
        ("read", "read", 420, 6_512_345, 1_706_000),
        ("invalid_utf8", "read", 1, 12_345, 0),
        ("normalized", "normalize", 0, 40_000, 0),
        ("too_short", "quality", 12, 300, 0),
        ("duplicate", "exact", 7, 259_700, 0),
        ("train", "shards", 390, 6_000_000, 1_651_000),
        ("validation", "shards", 10, 200_000, 55_000),
    ]
    keys = ("reason", "stage", "documents", "bytes", "tokens")
    return Results(
        fingerprint="0f" * 16,
        checkpoint={"name": "step_00001200", "step": 1200, "fingerprint": "ab" * 16},
        recipe_fingerprint="cd" * 16,
        data_fingerprint="ef" * 16,
        model={"family": "llama", "parameters": 10_912_000, "layers": 6, "width": 256, "context_length": 256},
        data={"train": {"documents": 390, "tokens": 1_651_000, "bytes": 6_000_000}},
        results=results,
        samples=fake_samples(),
        funnel=[{"source": "gutenberg", **dict(zip(keys, row, strict=True))} for row in rows],
        lineage=[
            {"name": "Recipe", "fingerprint": "cd" * 16, "detail": "demo, seed 1234"},
            {"name": "Training data", "fingerprint": "ef" * 16, "detail": "gutenberg"},
            {"name": "Checkpoint", "fingerprint": "ab" * 16, "detail": "step_00001200"},
        ],
        versions={"torch": "2.13.0", "numpy": "2.4.6"},
        seconds=31.5,
    )


def write_metrics(directory: Path, steps: int = 1200) -> None:
    noise = random.Random(0)
    lines = []
    for step in range(10, steps + 1, 10):
        loss = 5.1 + 4 * math.exp(-step / 150) + noise.gauss(0, 0.06)
        speed = 24_000 + noise.gauss(0, 900)
        values = {
            "step": step, "time": 1e9 + step, "tokens": step * 4096, "train/loss": loss, "train/tokens_per_s": speed,
            "train/lr": 1e-3 * min(1, step / 60) * (0.55 + 0.45 * math.cos(math.pi * step / steps)),
            "train/code_bits_per_byte": 2.6 + 3 * math.exp(-step / 300),
        }  # fmt: skip
        lines.append(values)
        if step % 100 == 0:
            smooth = 5.2 + 4 * math.exp(-step / 150)
            lines.append({"step": step, "time": 1e9 + step, "val/loss": smooth, "val/bits_per_byte": smooth * 0.43})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_fake_run(directory: Path, gates: list[str] | None = None, scale: float = 1.0, **changes: Any) -> Path:
    """Writes recipe.yaml, results.json and metrics.jsonl; `scale` multiplies the scores, `changes` replace parts."""
    directory.mkdir(parents=True, exist_ok=True)
    save(fake_recipe(directory, gates), directory)
    results = replace(fake_results(), **changes)
    scaled = [
        replace(item, value=item.value * scale, low=(item.low or 0) * scale, high=(item.high or 0) * scale)
        for item in results.results
    ]
    replace(results, results=scaled).save(directory)
    write_metrics(directory)
    return directory

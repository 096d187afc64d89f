"""The largest model that trains on this machine: layers are added until a probe no longer fits, one table line a kind.

    python benchmarks/largest.py --memory 20 --markdown largest.md
    python benchmarks/largest.py --kinds "Muon, bf16" train.micro_batch_size=2

Llama blocks of width 2,048 over rows of 1,024 tokens, one row a step, full activation checkpointing, a vocabulary of
32,000. Each try is `replica plan --probe` in a process of its own, which is ended when it holds more than `--memory`
GiB, so that the machine never swaps. The first try is what the plan says will fit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

GIB = float(2**30)
ROOT = Path(__file__).resolve().parent.parent
OFFLOADED = ["train.zero.offload_optimizer=cpu"]
KINDS = {
    "AdamW, fp32": ["train.precision=fp32", "train.zero.stage=0"],
    "AdamW, bf16": ["train.precision=bf16", "train.zero.stage=0"],
    "Muon, bf16": ["train.precision=bf16", "train.zero.stage=0", "train.optimizer.name=muon"],
    "AdamW, bf16, ZeRO-2, optimizer offloaded": ["train.precision=bf16", "train.zero.stage=2", *OFFLOADED],
    "AdamW, bf16, ZeRO-3, all offloaded": [
        *("train.precision=bf16", "train.zero.stage=3"),
        *(*OFFLOADED, "train.zero.offload_parameters=cpu"),
    ],
}
RECIPE = """
name: largest
data:
  sources: [{name: none, path: none.txt, licence: none}]  # nothing is read
  tokenizer: {kind: bpe, vocab_size: 32_000}
model: {family: llama, num_layers: 1, hidden_size: 2048, num_heads: 16, context_length: 1024, tied_embeddings: true}
train:
  steps: 1000
  global_batch_size: 1
  micro_batch_size: 1
  compile: false
  activation_checkpointing: full
  checkpoint: {asynchronous: false}
"""


def replica_plan(recipe: Path, overrides: list[str], limit: float, probe: bool) -> dict[str, Any] | None:
    """The plan, or None where its probe came to hold more than `limit` bytes."""
    command = [sys.executable, "-m", "launch.cli", "plan", str(recipe), *overrides, "--json"]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command + ["--probe"] * probe, cwd=ROOT, stdout=out, stderr=errors, start_new_session=True
        )
        while process.poll() is None:
            if held(process.pid) > limit:
                for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                    child.kill()
                process.wait()
                return None
            time.sleep(0.1)
        for file in (out, errors):
            file.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{errors.read()[-3000:]}")
        result: dict[str, Any] = json.load(out)
        return result


def held(pid: int) -> float:
    """Bytes of the largest process among this one and its children."""
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        return max(float(process.memory_info().rss) for process in tree)
    except psutil.NoSuchProcess:
        return 0.0


def planned(recipe: Path, overrides: list[str], layers: int) -> float:
    """Bytes that the plan gives this many layers."""
    plan = replica_plan(recipe, [*overrides, f"model.num_layers={layers}"], float("inf"), probe=False)
    assert plan is not None
    return float(plan["recipe_settings"]["total"])


def search(recipe: Path, overrides: list[str], limit: float) -> dict[str, Any]:
    """The most layers that fit in `limit` bytes, between the most that ran and the fewest that did not."""
    few, many = planned(recipe, overrides, 4), planned(recipe, overrides, 8)
    layers = max(1, int(4 + (limit - few) / ((many - few) / 4)))
    best: dict[str, Any] = {}
    smallest_failed = None
    while layers > best.get("layers", 0) and (smallest_failed is None or layers < smallest_failed):
        print(f"  {layers} layers …", file=sys.stderr, flush=True)
        plan = replica_plan(recipe, [*overrides, f"model.num_layers={layers}"], limit, probe=True)
        if plan is None:
            smallest_failed = layers
            layers -= 1
        else:
            best = {"layers": layers, "plan": plan}
            layers += 1
    return best


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| kind | layers | parameters | peak, GiB | bytes a parameter | planned / measured | s a step | tokens/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, best in found.items():
        if not best:
            lines.append(f"| {kind} | none fits | | | | | | |")
            continue
        probe, count = best["plan"]["probe"], best["plan"]["parameters"]["total"]
        measured, seconds = probe["measured_bytes"], probe["measured_step_seconds"]
        lines.append(
            f"| {kind} | {best['layers']} | {count / 1e9:.3f} B | {measured / GIB:.1f} | {measured / count:.1f} "
            f"| {probe['predicted_bytes'] / measured - 1:+.1%} | {seconds:.1f} | {1024 / seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    available = psutil.virtual_memory().available / GIB
    parser.add_argument("--memory", type=float, default=available - 2, help="GiB for a process; default: all but 2 GiB")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--markdown", type=Path, help="file for the table")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value")
    options = parser.parse_intermixed_args()
    if options.memory > available:
        raise SystemExit(f"error: --memory asks for {options.memory:.1f} GiB, of which {available:.1f} are free")
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        recipe = Path(directory) / "largest.yaml"
        recipe.write_text(RECIPE, encoding="utf-8")
        for kind in options.kinds:
            print(kind, file=sys.stderr, flush=True)
            found[kind] = search(recipe, [*KINDS[kind], *options.overrides], options.memory * GIB)
            text = table(found)
            print(text, flush=True)
            if options.markdown:
                options.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

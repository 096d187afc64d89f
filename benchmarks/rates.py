"""What each step of data preparation costs on one core: processor seconds, bytes moved and memory.

Runs the stages in this process over some files and writes a table and a file that `benchmarks/scale.py` plans with.
Pages as they come (.warc) and plain text differ much: measure what you will run.

    python benchmarks/rates.py corpora/techdocs-en.jsonl.zst corpora/gutenberg-en/books-0000*.zst --out rates.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from configs.schema.recipe import Recipe
from data_prep.funnel.tally import READ
from data_prep.stages import pipeline
from data_prep.workers.cluster import Cluster
from data_prep.workers.runner import Runner
from data_prep.workers.stage import Stage

Task = TypeVar("Task")
DRIVER = "driver"


@dataclass
class Cost:
    """Of one step over everything."""

    seconds: float = 0.0  # of the processor
    read: int = 0  # bytes, through system calls
    written: int = 0
    units: int = 0
    peak: int = 0  # bytes of memory held


@dataclass(frozen=True)
class Measuring(Runner):
    """Notes the cost of every step while it runs the work."""

    costs: dict[str, Cost] = field(default_factory=dict)

    def map(
        self, stage: Stage, label: str, function: Callable[[Task], Any], tasks: Sequence[Task],
        size: Callable[[str], float], total: float | None,
    ) -> Iterator[tuple[Task, Any]]:  # fmt: skip
        """As `Runner.map`."""
        known = label.startswith((stage.name, "lines:", "tokenizer sample"))
        name = label if known else f"{stage.name}: {label}"
        with cost_of(self.costs.setdefault(name, Cost())) as cost:
            for done in Runner.map(self, stage, label, function, tasks, size, total):
                cost.units += 1
                yield done


@contextmanager
def cost_of(cost: Cost) -> Iterator[Cost]:
    """Adds what the body costs."""
    seconds, read, written = time.process_time(), *_moved()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    try:
        yield cost
    finally:
        after_read, after_written = _moved()
        cost.seconds += time.process_time() - seconds
        cost.read += after_read - read
        cost.written += after_written - written
        cost.peak = max(cost.peak, _peak())


def _moved() -> tuple[int, int]:
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"]), int(lines["wchar"])


def _peak() -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def recipe_for(files: Sequence[str], out: Path, preset: str, vocab: int, unit_bytes: int) -> Recipe:
    """All steps but those that need evaluation sets."""
    return Recipe.model_validate(
        {
            "name": "rates",
            "out": str(out),
            "data": {
                "sources": [{"name": "text", "path": list(files)}],
                "directory": str(out / "data"),  # named, so that nothing is taken from an earlier measurement
                "preset": preset,
                "privacy": {"emails": True, "ip_addresses": True},
                "dedup": {"exact": True, "lines": {}, "near": {}, "substrings": {}},
                "tokenizer": {"vocab_size": vocab},
                "unit_bytes": unit_bytes,
            },
            "model": {"num_layers": 1, "hidden_size": 8, "num_heads": 1},
            "train": {"steps": 1},
        }
    )


def measure(recipe: Recipe) -> dict[str, Any]:
    """Runs the stages; returns costs by step and what was moved in all."""
    whole = Cost()
    runner = Measuring(Cluster(workers=0, directory=recipe.data_directory))
    with cost_of(whole):
        pipeline._run(recipe, runner)
    costs = runner.costs
    driver = costs[DRIVER] = Cost(whole.seconds, whole.read, whole.written)
    for name, cost in costs.items():
        if name != DRIVER:
            driver.seconds -= cost.seconds
            driver.read -= cost.read
            driver.written -= cost.written
    documents = json.loads((recipe.data_directory / "documents" / "manifest.json").read_text())
    shards = json.loads((recipe.data_directory / "shards" / "manifest.json").read_text())["shards"]
    raw = sum(entry[1] for reasons in documents["counts"].values() for key, entry in reasons.items() if key == READ)
    return {
        "raw_bytes": raw,
        "kept_bytes": sum(part["bytes"] for part in documents["parts"]),
        "parts": len(documents["parts"]),
        "unit_bytes": recipe.data.unit_bytes,
        "documents": sum(part["documents"] for part in documents["parts"]),
        "tokens": sum(shard["tokens"] for shard in shards),
        "at_rest": {
            stage: sum(file.stat().st_size for file in (recipe.data_directory / stage).rglob("*") if file.is_file())
            for stage in json.loads((recipe.data_directory / "manifest.json").read_text())["stages"]
        },
        "steps": {name: vars(cost) for name, cost in costs.items()},
    }


def table(found: dict[str, Any]) -> str:
    """Markdown: by the raw text for the documents, by the text they kept for all that follows."""
    lines = [
        "| step | MB/s on a core | read, bytes per byte | written | peak memory, MB | units |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, cost in found["steps"].items():
        text = found["raw_bytes" if name == "documents" else "kept_bytes"]
        rate = f"{text / 1e6 / cost['seconds']:,.1f}" if cost["seconds"] > 0.001 else "-"
        moved = f"{cost['read'] / text:.2f} | {cost['written'] / text:.2f}"
        lines.append(f"| {name} | {rate} | {moved} | {cost['peak'] / 1e6:,.0f} | {cost['units']} |")
    return "\n".join(lines)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="what data.sources.path takes")
    parser.add_argument("--preset", default="fineweb", help="of the data section (default: fineweb)")
    parser.add_argument("--vocab", type=int, default=32768, help="size of the vocabulary (default: 32768)")
    parser.add_argument("--unit-bytes", type=int, default=8_000_000, help="data.unit_bytes (default: 8000000)")
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="rates-", dir=os.environ.get("TMPDIR")))
    try:
        found = measure(recipe_for(arguments.files, directory, arguments.preset, arguments.vocab, arguments.unit_bytes))
    finally:
        shutil.rmtree(directory)
    print(
        f"{found['raw_bytes'] / 1e6:.1f} MB raw, {found['kept_bytes'] / 1e6:.1f} MB kept, {found['tokens']:,} tokens\n"
    )
    print(table(found))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

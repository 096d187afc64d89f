"""FineWeb's filters (Gopher repetition, Gopher quality, C4, FineWeb) beside datatrove's, one process each.

    python benchmarks/filters.py --peer PYTHON FILE ... [--rounds 3]

PYTHON and FILE: see benchmarks/quality_reference.py. Each round runs both, one after the other, in fresh processes that
have read the texts before the clock starts; start-up of the rules and an empty word table are in the time. Printed:
medians of process time over the rounds, their ratio, documents kept, and the peak memory of both.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def datatrove() -> Callable[[str], bool]:
    """Whether datatrove keeps a text."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    rules = [
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        C4QualityFilter(filter_no_terminal_punct=False),
        FineWebQualityFilter(),
    ]

    def keeps(text: str) -> bool:
        document = Document(text=text, id="")
        return all(rule.filter(document) is True for rule in rules)

    return keeps


def ours() -> Callable[[str], bool]:
    """Whether the preset `fineweb` keeps a text."""
    sys.path.insert(0, str(ROOT))
    from pydantic import TypeAdapter

    from configs.schema.presets import PRESETS
    from configs.schema.quality_rules import Rule
    from data_prep.quality import build_rules, judge

    settings = TypeAdapter(list[Rule]).validate_python(PRESETS["fineweb"]["quality"]["rules"])
    rules = build_rules(settings)
    return lambda text: isinstance(judge(rules, text), str)


def measure(side: str, path: Path) -> None:
    """In a process of its own: seconds, documents kept and peak memory (MB), as JSON."""
    with path.open(encoding="utf-8") as stream:
        texts = [json.loads(line) for line in stream]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    keeps = {"ours": ours, "datatrove": datatrove}[side]()
    kept = sum(map(keeps, texts))
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "kept": kept, "peak": peak / 1024, "texts": before / 1024}))


def run(python: str, side: str, path: Path) -> dict[str, Any]:
    """One measurement."""
    command = [python, __file__, "--measure", side, str(path)]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def compare(argument: str, peer: str, rounds: int) -> None:
    """One row of the table."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.quality_reference import texts

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.jsonl"
        size = documents = 0
        with path.open("w", encoding="utf-8") as stream:
            for text in texts(argument):
                stream.write(json.dumps(text) + "\n")
                size += len(text.encode("utf-8", "surrogatepass"))
                documents += 1
        results: dict[str, list[dict[str, Any]]] = {"ours": [], "datatrove": []}
        for _ in range(rounds):
            results["ours"].append(run(sys.executable, "ours", path))
            results["datatrove"].append(run(peer, "datatrove", path))
    seconds = {side: statistics.median(result["seconds"] for result in results[side]) for side in results}
    ratio = statistics.median(
        theirs["seconds"] / mine["seconds"] for mine, theirs in zip(*results.values(), strict=True)
    )
    peak = {side: max(result["peak"] for result in results[side]) for side in results}
    kept = {side: results[side][0]["kept"] for side in results}
    name = Path(argument.split(":")[0]).name
    print(
        f"| {name} | {documents} | {size / 1e6:.1f} | {kept['ours']} / {kept['datatrove']} "
        f"| {size / 1e6 / seconds['ours']:.2f} | {size / 1e6 / seconds['datatrove']:.2f} | {ratio:.1f}x "
        f"| {peak['ours']:.0f} / {peak['datatrove']:.0f} |",
        flush=True,
    )


def main() -> None:
    """See the module's description."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--peer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments.measure[0], Path(arguments.measure[1]))
    print("| file | documents | MB | kept, ours / datatrove | ours, MB/s | datatrove, MB/s | ratio | peak MB |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for argument in arguments.files:
        compare(argument, arguments.peer, arguments.rounds)
    return None


if __name__ == "__main__":
    main()

"""Estimates from measured rates what 1, 15 and 100 TB of text need, and what becomes the bottleneck.

    python benchmarks/rates.py FILES … --out rates.json
    python benchmarks/scale.py rates.json --nodes 4 16 64

Prints Markdown. Costs by byte are those of `rates.json`; all else that is assumed are the options below.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TB = 1e12
MOST_PARTS = 200_000
RANGE_RECORDS, RANGES, MOST_RANGE_RECORDS = 1_000_000, 10_000, 8_000_000  # as in data_prep/dedup/shuffle.py
PER_RANGE = ("duplicates", "repeated", "pairs", "labels", "verify", "found")
# Steps that write records into a shuffle, and the bytes of one.
RECORDS = {"exact: hashes": 24, "lines: hashes": 24, "near: signatures": 16, "substrings: anchors of parts": 16}


@dataclass(frozen=True)
class Site:
    """The cluster and its file system."""

    nodes: int
    cores: int
    busy: float  # share of the cores' time that goes into the work
    node_bytes: float  # a second, between a node and the file system
    shared_bytes: float  # a second, of the file system
    operations: float  # opens, creations, renames a second, of the file system
    dispatch: float  # seconds of the driver for a task


@dataclass(frozen=True)
class Plan:
    """What one run needs."""

    size: float
    unit_bytes: int
    parts: int
    tasks: float
    opens: float
    widest: float
    read: float
    written: float
    shuffled: float
    hours: dict[str, float]

    @property
    def longest(self) -> float:
        """Hours of the whole, when moving bytes and computing do not overlap at all."""
        return sum(self.hours.values())

    @property
    def bottleneck(self) -> str:
        """What takes longest."""
        return max(self.hours, key=lambda name: self.hours[name])


def unit_bytes(size: float) -> int:
    """`data.unit_bytes` that keeps the number of parts below `MOST_PARTS`: 32 MB, or a power of two more."""
    unit = 32_000_000
    while size / unit > MOST_PARTS:
        unit *= 2
    return unit


def plan(found: dict[str, Any], size: float, site: Site) -> Plan:
    """The needs of `size` bytes of raw text."""
    kept = found["kept"]
    unit = unit_bytes(size)
    parts = math.ceil(size / unit)
    seconds = read = written = shuffled = tasks = opens = widest = 0.0
    for name, cost in found["steps"].items():
        if name == "driver":
            continue
        base = found["raw_bytes" if name == "documents" else "kept_bytes"]
        text = size if name == "documents" else size * kept
        seconds += cost["seconds"] / base * text
        read += cost["read"] / base * text
        written += cost["written"] / base * text
        if name in RECORDS:
            volume = cost["written"] / base * text
            shuffled += volume
            records = volume / RECORDS[name]
            ranges = records / min(max(RANGE_RECORDS, records / RANGES), MOST_RANGE_RECORDS)
            opens += parts + ranges * math.sqrt(parts)
            widest = max(widest, ranges)
            tasks += ranges + math.sqrt(parts)
        if name == "documents" or cost["units"] >= found["parts"]:
            tasks += parts
    bandwidth = min(site.nodes * site.node_bytes, site.shared_bytes)
    # A commit is a creation, a rename and two directory updates of the unit's file and as much for what it describes.
    operations = tasks * 8 + opens
    hours = {
        "processors": seconds / (site.nodes * site.cores * site.busy) / 3600,
        "bytes moved": (read + written) / bandwidth / 3600,
        "file operations": operations / site.operations / 3600,
        "driver": (tasks * site.dispatch + found["steps"]["driver"]["seconds"]) / 3600,
    }
    return Plan(size, unit, parts, tasks, opens, widest, read, written, shuffled, hours)


def table(found: dict[str, Any], sizes: list[float], nodes: list[int], site: dict[str, float]) -> str:
    """Markdown: a column for each size."""
    plans = [plan(found, size * TB, Site(nodes=count, **site)) for size, count in zip(sizes, nodes, strict=True)]  # type: ignore[arg-type]
    rows: list[tuple[str, list[str]]] = [
        ("nodes of {:.0f} cores".format(site["cores"]), [f"{count}" for count in nodes]),
        ("`data.unit_bytes`, MB", [f"{p.unit_bytes / 1e6:,.0f}" for p in plans]),
        ("parts", [f"{p.parts:,}" for p in plans]),
        ("tasks and commits", [f"{p.tasks:,.0f}" for p in plans]),
        ("files in the largest directory", [f"{3 * p.parts:,}" for p in plans]),
        ("opens by shuffles", [f"{p.opens:,.0f}" for p in plans]),
        ("ranges of the largest shuffle", [f"{p.widest:,.0f}" for p in plans]),
        ("bytes through shuffles, TB", [f"{p.shuffled / TB:,.1f}" for p in plans]),
        ("read, TB", [f"{p.read / TB:,.1f}" for p in plans]),
        ("written, TB", [f"{p.written / TB:,.1f}" for p in plans]),
        *[(f"hours: {name}", [f"{p.hours[name]:,.1f}" for p in plans]) for name in plans[0].hours],
        ("hours in all, nothing overlapping", [f"{p.longest:,.1f}" for p in plans]),
        ("takes longest", [p.bottleneck for p in plans]),
    ]
    lines = ["| | " + " | ".join(f"{size:g} TB" for size in sizes) + " |", "|---|" + "---:|" * len(sizes)]
    lines += [f"| {name} | " + " | ".join(values) + " |" for name, values in rows]
    return "\n".join(lines)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rates", type=Path, help="what benchmarks/rates.py wrote")
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 15, 100], help="TB of raw text")
    parser.add_argument("--nodes", type=int, nargs="+", default=[4, 16, 64], help="for each size")
    parser.add_argument("--kept", type=float, default=0.5, help="share of the text that the documents stage keeps")
    parser.add_argument("--documents-rate", type=float, help="MB/s on a core of that stage (default: as in the file)")
    parser.add_argument("--cores", type=int, default=64, help="of a node")
    parser.add_argument("--busy", type=float, default=0.8, help="share of the cores' time that goes into the work")
    parser.add_argument("--node-bytes", type=float, default=2e9, help="a second, between a node and the file system")
    parser.add_argument("--shared-bytes", type=float, default=40e9, help="a second, of the file system")
    parser.add_argument("--operations", type=float, default=20e3, help="opens, renames … a second, of the file system")
    parser.add_argument("--dispatch", type=float, default=1.4e-3, help="seconds of the driver for a task (measured)")
    arguments = parser.parse_args()
    found = json.loads(arguments.rates.read_text())
    found["kept"] = arguments.kept
    if arguments.documents_rate:
        found["steps"]["documents"]["seconds"] = found["raw_bytes"] / 1e6 / arguments.documents_rate
    site = {
        name: getattr(arguments, name)
        for name in ("cores", "busy", "node_bytes", "shared_bytes", "operations", "dispatch")
    }
    print(table(found, arguments.sizes, arguments.nodes, site))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Questions that anybody can check: a number below 1,000 and a digit, added up.

    python benchmarks/sums.py configs/corpus

Writes `sums-train.jsonl.zst` and `sums-heldout.jsonl.zst` (shape gsm8k), and `sums-pairs-train.jsonl.zst` and
`sums-pairs-heldout.jsonl.zst` (shape pairs: the right answer against a wrong one). All of them are functions of nothing
but this file. A held-out sum is in no training file either way round: `3 + 4` and `4 + 3` are on the same side.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import zstandard

FIRST, SECOND = 1000, 10  # numbers below these
HELD_OUT = 1000  # of 9,955 pairs of numbers without an order
PAIRS = {"train": 2000, "heldout": 500}


def split_sums(seed: int = 0) -> dict[str, list[tuple[int, int]]]:
    """(a, b) of `train` and `heldout`, each in random order; together every a below 1,000 with every b below 10."""
    draw = random.Random(seed)
    every = [(a, b) for a in range(FIRST) for b in range(SECOND)]
    unordered = sorted({(min(pair), max(pair)) for pair in every})
    draw.shuffle(unordered)
    held_out = set(unordered[:HELD_OUT])
    draw.shuffle(every)
    return {
        name: [pair for pair in every if ((min(pair), max(pair)) in held_out) is inside]
        for name, inside in (("heldout", True), ("train", False))
    }


def question(a: int, b: int) -> dict[str, Any]:
    """A record of shape gsm8k."""
    return {"id": f"sum-{a}-{b}", "question": f"What is {a} + {b}?", "answer": f"#### {a + b}"}


def preference(a: int, b: int, draw: random.Random) -> dict[str, Any]:
    """A record of shape pairs: one digit of the rejected answer is wrong."""
    right = str(a + b)
    place = draw.randrange(len(right))
    others = [digit for digit in "0123456789" if digit != right[place] and (place or len(right) == 1 or digit != "0")]
    wrong = right[:place] + draw.choice(others) + right[place + 1 :]
    record = question(a, b)
    return {
        "id": record["id"], "prompt": record["question"], "chosen": record["answer"], "rejected": f"#### {wrong}",
    }  # fmt: skip


def write(file: Path, records: list[dict[str, Any]]) -> None:
    """Writes JSON lines, compressed."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    file.write_bytes(zstandard.ZstdCompressor(level=19).compress(lines.encode()))
    print(f"{file}: {len(records):,} records")


def main() -> None:
    """Writes the four files into the directory that is named."""
    directory, draw = Path(sys.argv[1]), random.Random(1)
    for side, sums in split_sums().items():
        write(directory / f"sums-{side}.jsonl.zst", [question(a, b) for a, b in sums])
        chosen = [preference(a, b, draw) for a, b in sums[: PAIRS[side]]]
        write(directory / f"sums-pairs-{side}.jsonl.zst", chosen)


if __name__ == "__main__":
    main()

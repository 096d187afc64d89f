"""Questions that anybody can check: two numbers below 100, added up digit by digit as at school.

    python benchmarks/sums.py configs/corpus

An answer adds the units, then the tens with the carry, and ends with the sum: `6+7=13 4+0+1=5`, `#### 53`. With the
working written out, a small model has to know the sums of two digits only, as in Nye et al., arXiv:2112.00114.

Writes, all as functions of nothing but this file:

    sums-demonstrations.jsonl.zst   worked by a pupil who forgets two of three carries (shape gsm8k)
    sums-train.jsonl.zst            the same questions with the right answers, for rewards (shape gsm8k)
    sums-heldout.jsonl.zst          other questions with the right answers (shape gsm8k)
    sums-pairs-train.jsonl.zst, sums-pairs-heldout.jsonl.zst   the right working against a wrong carry (shape pairs)

The pupil is there on purpose. A model that imitates people imitates their mistakes; a reward knows better, and the demo
is to show that. A held-out sum is in no training file either way round: `3 + 4` and `4 + 3` are on the same side.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import zstandard

BELOW = 100  # both numbers
HELD_OUT = 500  # of 5,050 pairs of numbers without an order
FORGOTTEN = 2 / 3  # of the pupil's carries
PAIRS = {"train": 2000, "heldout": 500}


def split_sums(seed: int = 0) -> dict[str, list[tuple[int, int]]]:
    """(a, b) of `train` and `heldout`, each in random order; together all pairs of numbers below 100."""
    draw = random.Random(seed)
    every = [(a, b) for a in range(BELOW) for b in range(BELOW)]
    unordered = [(a, b) for a, b in every if a <= b]
    draw.shuffle(unordered)
    held_out = set(unordered[:HELD_OUT])
    draw.shuffle(every)
    return {
        name: [pair for pair in every if ((min(pair), max(pair)) in held_out) is inside]
        for name, inside in (("heldout", True), ("train", False))
    }


def working(a: int, b: int, slips: bool = False) -> str:
    """The answer to `a + b`; `slips`: with a carry that is forgotten, or made up where there is none."""
    units = a % 10 + b % 10
    carry = units // 10 if not slips else 1 - units // 10
    tens = a // 10 + b // 10 + carry
    return f"{a % 10}+{b % 10}={units} {a // 10}+{b // 10}+{carry}={tens}\n#### {10 * tens + units % 10}"


def carries(a: int, b: int) -> bool:
    """Tells whether the units add up to ten or more."""
    return a % 10 + b % 10 >= 10


def question(a: int, b: int, slips: bool = False) -> dict[str, Any]:
    """A record of shape gsm8k."""
    return {"id": f"sum-{a}-{b}", "question": f"What is {a} + {b}?", "answer": working(a, b, slips)}


def demonstration(a: int, b: int, draw: random.Random) -> dict[str, Any]:
    """A record of shape gsm8k, as the pupil answers it."""
    return question(a, b, slips=carries(a, b) and draw.random() < FORGOTTEN)


def preference(a: int, b: int) -> dict[str, Any]:
    """A record of shape pairs: the right answer against the one with a wrong carry."""
    record = question(a, b)
    rejected = working(a, b, slips=True)
    return {"id": record["id"], "prompt": record["question"], "chosen": record["answer"], "rejected": rejected}


def write(file: Path, records: list[dict[str, Any]]) -> None:
    """Writes JSON lines, compressed."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    file.write_bytes(zstandard.ZstdCompressor(level=19).compress(lines.encode()))
    print(f"{file}: {len(records):,} records")


def every_file() -> dict[str, list[dict[str, Any]]]:
    """The records of each file, by its name without `.jsonl.zst`."""
    sums, draw = split_sums(), random.Random(1)
    files = {"sums-demonstrations": [demonstration(a, b, draw) for a, b in sums["train"]]}
    for side, found in sums.items():
        files[f"sums-{side}"] = [question(a, b) for a, b in found]
        files[f"sums-pairs-{side}"] = [preference(a, b) for a, b in found[: PAIRS[side]]]
    return files


def main() -> None:
    """Writes the files into the directory that is named."""
    for name, records in every_file().items():
        write(Path(sys.argv[1]) / f"{name}.jsonl.zst", records)


if __name__ == "__main__":
    main()

"""Growth of deduplication: CPU time per MB of stages `exact` and `near` at 10 MB, 100 MB and 1 GB, and memory.

The text is made from some real documents by repetition: each repetition exchanges all letters by an alphabet of its own
(so that repetitions are unlike each other), and of its documents 15% are replaced by a copy of a document made before,
15% by such a copy with one word in a hundred changed. Parts hold 8 MB at every size.

    python benchmarks/growth.py FILE.jsonl.zst … --megabytes 10 100 1000
"""

from __future__ import annotations

import argparse
import hashlib
import random
import resource
import string
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent))
from minhash import make_stage, pooled, write_rows

from configs.schema.data import NearDuplicates
from configs.schema.sources import Source
from data_prep.dedup.exact import ExactDeduplication
from data_prep.dedup.near import NearDeduplication
from data_prep.documents.parts_writer import sorted_hashes
from data_prep.workers.parts import SCHEMA
from data_prep.workers.verdicts import Part

PART_BYTES = 8_000_000
BASE_BYTES = 8_000_000
LONGEST = 20_000


def base_texts(files: list[str]) -> list[str]:
    """Some megabytes of real documents, long ones cut."""
    from data_prep.documents.conversion import read_documents

    texts: list[str] = []
    size = 0
    for file in files:
        for document in read_documents(Source(name="s", path=file)):
            for start in range(0, min(len(document.text), 20 * LONGEST), LONGEST):
                texts.append(document.text[start : start + LONGEST])
                size += len(texts[-1])
            if size >= BASE_BYTES:
                return texts
    return texts


def alphabet(number: int) -> dict[int, int]:
    """The letters of one repetition."""
    letters = list(string.ascii_lowercase)
    random.Random(number).shuffle(letters)
    mixed = "".join(letters)
    return str.maketrans(string.ascii_letters, mixed + mixed.upper())


def documents(base: list[str], megabytes: float) -> Iterator[str]:
    """Documents of so much text in all."""
    chance = random.Random(1)
    made = repetition = 0
    while made < megabytes * 1e6:
        table = alphabet(repetition)
        for text in base:
            draw = chance.random()
            if draw < 0.3 and repetition + made:
                text = chance.choice(base).translate(alphabet(chance.randint(0, max(0, repetition - 1))))
                if draw < 0.15:
                    words = text.split(" ")
                    for _ in range(max(1, len(words) // 100)):
                        words[chance.randrange(len(words))] = f"x{chance.random()}"
                    text = " ".join(words)
            else:
                text = text.translate(table)
            made += len(text.encode())
            yield text
            if made >= megabytes * 1e6:
                return
        repetition += 1


def make_parts(directory: Path, texts: Iterator[str]) -> list[Part]:
    """Parts as stage `documents` would leave them."""
    directory.mkdir(parents=True)
    parts: list[Part] = []
    text = next(texts, None)
    while text is not None:
        name = f"000-{len(parts):05d}-000000"
        rows: list[tuple[object, ...]] = []
        digests, sizes = [], []
        with pq.ParquetWriter(directory / f"{name}.parquet", SCHEMA, compression="zstd", compression_level=1) as writer:
            while text is not None and sum(sizes) < PART_BYTES:
                encoded = text.encode()
                rows.append((str(len(sizes)), text, None, None, 0, 0, len(encoded)))
                digests.append(hashlib.blake2b(encoded, digest_size=16).digest())
                sizes.append(len(encoded))
                text = next(texts, None)
            write_rows(writer, rows)
        with (directory / f"{name}.hashes.npy").open("wb") as stream:
            np.save(stream, sorted_hashes(digests, sizes))
        parts.append(Part(name, len(parts), "s", directory, (), len(sizes), sum(sizes)))
    return parts


def used() -> float:
    """CPU seconds of this process and its children that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("files", nargs="+")
    given = parser.parse_args()
    base = base_texts(given.files)
    print("| MB | documents | exact dropped | near dropped | CPU ms per MB | of the smallest | peak MiB of a worker |")
    print("|---|---|---|---|---|---|---|", flush=True)
    smallest = None
    for megabytes in given.megabytes:
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(temporary)
            parts = make_parts(place / "documents", documents(base, megabytes))
            size = sum(part.bytes for part in parts) / 1e6
            begin, gone = used(), []
            for kind in (ExactDeduplication(), NearDeduplication(NearDuplicates())):
                directory, _ = make_stage(place, kind, parts, pooled(given.workers))
                gone.append(sum(pq.read_metadata(file).num_rows for file in directory.glob("*.parquet")))
                parts = [
                    Part(p.name, p.number, p.source, p.documents, (*p.verdicts, directory), p.rows, p.bytes)
                    for p in parts
                ]
            cost = (used() - begin) * 1000 / size
            smallest = smallest or cost
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            rows = sum(part.rows for part in parts)
            print(
                f"| {size:.0f} | {rows} | {gone[0]} | {gone[1]} | {cost:.0f} | {cost / smallest:.2f} | {peak:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""Writes biopython.json: what Biopython's SeqIO reads of the files here, up to the first error."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from Bio import SeqIO

HERE = Path(__file__).parent


def read(path: Path) -> dict[str, object]:
    """Ids and digests of the sequences, and the error that ended it."""
    records: list[list[str]] = []
    error = None
    try:
        for record in SeqIO.parse(path, "fastq" if path.suffix == ".fastq" else "fasta"):
            records.append([record.id, hashlib.sha256(str(record.seq).encode()).hexdigest()[:16]])
    except ValueError as problem:
        error = str(problem)
    return {"records": records, "error": error}


if __name__ == "__main__":
    files = sorted(path for path in HERE.iterdir() if path.suffix in (".fastq", ".fasta", ".fa"))
    (HERE / "biopython.json").write_text(json.dumps({path.name: read(path) for path in files}, indent=1) + "\n")

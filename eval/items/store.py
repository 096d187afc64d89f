"""Stores the items of each part of an evaluation, as `RUN/scores/PART-….items.parquet`.

A file is written under a temporary name, read back, and renamed, so that it is complete or absent. Its metadata has the
part's name and the fingerprint of its inputs: items are shown and compared only with the scores that they belong to.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.common.files import atomic_path, fingerprint
from eval.items.item import Item
from eval.items.table import ItemTable, to_table

DIRECTORY = "scores"
SUFFIX = ".items.parquet"
VERSION = 1
_KEY = b"replica.items"


def stem(part: str) -> str:
    """Returns the name of a part's files without suffix; it is safe for any part name."""
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", part)[:80]
    return f"{readable}-{fingerprint(part)[:8]}"


def items_file(directory: Path, part: str) -> Path:
    """Returns where the items of a part stand, in the directory of stored scores."""
    return directory / f"{stem(part)}{SUFFIX}"


def write_items(directory: Path, part: str, own: str, items: Sequence[Item]) -> Path | None:
    """Writes the items of a part atomically; without items, removes an earlier file.

    Args:
        directory: of stored scores.
        part: name of the part.
        own: fingerprint of the part's inputs.
        items: all items, in the order of the set.

    Raises:
        OSError: when the file cannot be written, or is not what was written.
    """
    import pyarrow.parquet as pq

    file = items_file(directory, part)
    if not items:
        file.unlink(missing_ok=True)
        return None
    facts = {"version": VERSION, "part": part, "fingerprint": own, "items": len(items)}
    table = to_table(items).replace_schema_metadata({_KEY: json.dumps(facts, sort_keys=True).encode()})
    with atomic_path(file) as temporary:
        pq.write_table(table, temporary, compression="zstd")
        if not pq.read_table(temporary).equals(table):
            raise OSError(f"{file}: the file is not what was written; check the disk, and run the command again")
    return file


def read_file(file: Path) -> ItemTable:
    """Reads the items of one part.

    Raises:
        ValueError: when the file is damaged, or of another version.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file} cannot be read ({error}); {_again(file)}") from error
    facts = _facts(table.schema.metadata)
    if facts is None or facts["items"] != table.num_rows:
        raise ValueError(f"{file} holds no items that this version reads; {_again(file)}")
    return ItemTable(facts["part"], facts["fingerprint"], table)


def read_items(run: Path, part: str) -> ItemTable:
    """Reads the items of one part of a run's evaluation.

    Args:
        run: run directory, or a directory with its `scores`.
        part: such as `benchmark/piqa` or `perplexity/heldout`.

    Raises:
        ValueError: when there are none, or the file is damaged.
    """
    file = items_file(run / DIRECTORY, part)
    if file.is_file():
        return read_file(file)
    known = parts_with_items(run)
    if not known:
        raise ValueError(f"{run} has no items: score the run with `replica eval {run}`, which keeps them")
    near = difflib.get_close_matches(part, known, n=3, cutoff=0.5) or known[:10]
    raise ValueError(f"{run} has no items of `{part}`; it has those of {', '.join(near)}")


def parts_with_items(run: Path) -> list[str]:
    """Names the parts whose items are stored, in order of their names; damaged files are left out."""
    found = [facts["part"] for file in (run / DIRECTORY).glob(f"*{SUFFIX}") if (facts := facts_of(file)) is not None]
    return sorted(found)


def facts_of(file: Path) -> dict[str, Any] | None:
    """Returns `part`, `fingerprint` and the number of `items` of a file, without its rows; None for a damaged one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return _facts(pq.read_schema(file).metadata)
    except (OSError, pa.ArrowException):
        return None


def _facts(metadata: dict[bytes, bytes] | None) -> dict[str, Any] | None:
    try:
        facts = json.loads((metadata or {})[_KEY])
        known = facts["version"] == VERSION and isinstance(facts["items"], int)
        return {**facts, "part": str(facts["part"]), "fingerprint": str(facts["fingerprint"])} if known else None
    except (KeyError, ValueError, TypeError):
        return None


def _again(file: Path) -> str:
    return f"delete it and score the run again: replica eval {file.parent.parent}"

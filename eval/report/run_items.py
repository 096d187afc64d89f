"""Opens the items of a run's scores: those that `results.json` was made with, and no others."""

from __future__ import annotations

import difflib
from pathlib import Path

from eval.items.store import DIRECTORY, items_file, read_file
from eval.items.table import ItemTable
from eval.results import Results, load_results


def open_items(run: Path, part: str, results: Results | None = None) -> ItemTable:
    """Reads the items of one part of a run's scores.

    Args:
        run: run directory, or a directory with `results.json` and its `scores`.
        part: such as `benchmark/piqa`; see `parts_of`.
        results: contents of `results.json`; None: they are read.

    Raises:
        ValueError: when the part is unknown, or its items are missing, damaged or of other scores.
    """
    results = results or load_results(run)
    known = parts_of(run, results)
    if part not in known:
        near = difflib.get_close_matches(part, known, n=3, cutoff=0.4) or known
        raise ValueError(f"{run} has no items of `{part}`; it has those of {', '.join(near)}")
    file = items_file(run / DIRECTORY, part)
    if not file.is_file():
        raise ValueError(f"{file} is missing; make it again: replica eval {run}")
    table = read_file(file)
    if table.fingerprint != results.items[part]:
        raise ValueError(f"{file} holds items of other scores than results.json; make both again: replica eval {run}")
    return table


def parts_of(run: Path, results: Results) -> list[str]:
    """Names the parts of a run's scores that have items, in the order of scoring.

    Raises:
        ValueError: when there are none, as in results of an earlier version.
    """
    if not results.items:
        raise ValueError(
            f"{run}: its scores have no items, because an earlier version made them, or none of its scores has items; "
            f"score it again: replica eval {run}"
        )
    return list(results.items)

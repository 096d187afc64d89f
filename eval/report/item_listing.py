"""Prints the items of a run's scores as a table, or writes them to a file: `replica eval RUN --items`."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from configs.common.console import Console
from configs.common.files import atomic_path
from configs.common.rendering import score
from configs.safety.terminal import printable
from eval.items.table import ItemTable
from eval.report.item_view import ItemView, Judged, item_view, metric_of
from eval.report.run_items import open_items, parts_of
from eval.results import Results, load_results

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".csv", ".jsonl")
SHOWN = 20  # items of a table
_CELL = 60  # characters of a text in a table


def print_items(run: Path, part: str) -> None:
    """Prints the worst items of a part; without a name, the parts with their numbers of items.

    Raises:
        ValueError: see `eval.report.run_items.open_items`.
    """
    results = load_results(run)
    parts = parts_of(run, results)
    if not part and len(parts) > 1:
        _print_parts(run, parts, results)
        return
    table = open_items(run, part or parts[0], results)
    _print_view(item_view(table, metric_of(table, results), most=SHOWN))


def _print_parts(run: Path, parts: list[str], results: Results) -> None:
    listed = Table(box=None, pad_edge=False, header_style="dim")
    for title, justify in (("part", "left"), ("items", "right"), ("scores", "left")):
        listed.add_column(title, justify="right" if justify == "right" else "left")
    for name in parts:
        table = open_items(run, name, results)
        metrics = [*table.metrics(), *table.corpus_metrics()]
        listed.add_row(printable(name), f"{len(table):,}", printable(", ".join(metrics)))
    console = Console(soft_wrap=True)
    console.print(listed)
    console.print(
        f"Show the worst items of a part with --items PART, write all items with --items --to FILE{SUFFIXES[0]}"
    )


def _print_view(view: ItemView) -> None:
    console = Console(soft_wrap=False)
    if view.metric is None:
        console.print(f"{view.part}: {view.n:,} items, none with a score of its own; write them with --to FILE.jsonl")
        return
    better = "higher" if view.metric.higher else "lower"
    console.print(f"{view.part}: {view.n:,} items by {view.metric.name} ({better} is better), the worst first")
    table = Table(box=None, pad_edge=False, header_style="dim")
    several = len(view.subjects) > 1
    for title in ("id", *(["task"] if several else []), view.metric.name):
        table.add_column(title, justify="right" if title == view.metric.name else "left", no_wrap=True)
    for title in ("asked", "reference", "answer"):
        table.add_column(title, overflow="fold")
    for one in view.worst:
        table.add_row(*_row(one, several))
    if view.worst:
        console.print(table)
    else:
        console.print("No item can be better.")
    if view.n > len(view.worst):
        console.print(f"… and {view.n - len(view.worst):,} more; write all of them with --to FILE.parquet")


def _row(one: Judged, several: bool) -> list[str]:
    item = one.item
    texts = [_cell(text) for text in (item.asked, item.reference, item.answer)]
    return [printable(item.id), *([printable(item.subject)] if several else []), score(one.value), *texts]


def _cell(text: str | None) -> str:
    """A text on one line, its control characters escaped."""
    line = printable(" ".join((text or "").split()))
    return line if len(line) <= _CELL else f"{line[: _CELL - 2]} …"


# ---------------------------------------------------------------------------------------------------------------- files
def check_target(file: Path) -> None:
    """Raises `ValueError` for a file whose format is unknown, before items are read."""
    if file.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--to {file}: its name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")


def export_items(run: Path, part: str, file: Path) -> int:
    """Writes the items of a part, or of all parts, to a file, atomically; returns their number.

    A column `part` names the part of each item. In CSV, lists are written as JSON.

    Raises:
        ValueError: see `eval.report.run_items.open_items` and `check_target`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_target(file)
    results = load_results(run)
    tables = [open_items(run, name, results) for name in ([part] if part else parts_of(run, results))]
    table = pa.concat_tables([_named(one) for one in tables], promote_options="default")
    with atomic_path(file) as temporary:
        if file.suffix.lower() == ".parquet":
            pq.write_table(table, temporary, compression="zstd")
        elif file.suffix.lower() == ".csv":
            _write_csv(table, temporary)
        else:
            with temporary.open("w", encoding="utf-8") as stream:
                for row in _rows(table):
                    stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    return int(table.num_rows)


def _named(table: ItemTable) -> pa.Table:
    import pyarrow as pa

    columns = table.table.replace_schema_metadata(None)
    return columns.add_column(0, "part", pa.array([table.part] * len(table), pa.string()))


def _rows(table: pa.Table) -> Any:
    """The rows as JSON: what is absent is left out, and infinity is null."""
    for batch in table.to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            yield {name: _finite(value) for name, value in row.items() if value is not None and value != []}


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_csv(table: pa.Table, file: Path) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, table.column_names, restval="")
        writer.writeheader()
        for row in _rows(table):
            writer.writerow(
                {
                    name: json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
                    for name, value in row.items()
                }
            )

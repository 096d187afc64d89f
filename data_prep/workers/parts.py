"""Reads the documents of a part: a Parquet file that one unit of work of the stage `documents` wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("url", pa.string()),
        ("metadata", pa.string()),  # JSON
        ("offset", pa.int64()),  # UTF-8 bytes before this part in the original text
        ("part", pa.int32()),
        ("bytes", pa.int32()),  # of the normalised text as UTF-8
    ]
)


def read_part(directory: Path, name: str, columns: list[str]) -> Iterator[tuple[int, pa.Table]]:
    """A part's row groups: the number of the first row and the columns."""
    with pq.ParquetFile(directory / f"{name}.parquet") as file:
        start = 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns, use_threads=False)
            yield start, table
            start += table.num_rows

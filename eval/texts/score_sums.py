"""Sums up a file of scores, by source of a recipe or by file."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

QUANTILES = (0.1, 0.5, 0.9)
_COLUMNS = ["source", "file", "nats", "tokens", "bytes"]


@dataclass(frozen=True)
class Row:
    """Sums over the documents of a source or file, and quantiles of their bits per byte."""

    name: str
    documents: int
    bytes: int
    tokens: int
    bits_per_byte: float
    quantiles: tuple[float, ...]


def summary_rows(file: Path) -> list[Row]:
    """Returns a row for each source or file, in the order of the documents, then one of all where there are several.

    Memory: 16 bytes a document.
    """
    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(4))
    bits: dict[str, list[np.ndarray]] = defaultdict(list)
    with pq.ParquetFile(file) as parquet:
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, columns=_COLUMNS)
            names = np.array(pc.coalesce(table["source"], table["file"]).to_pylist())
            nats, tokens, size = (np.asarray(table[key].to_numpy(), dtype=np.float64) for key in _COLUMNS[2:])
            for name in dict.fromkeys(names.tolist()):
                own = names == name
                sums[name] += (own.sum(), size[own].sum(), tokens[own].sum(), nats[own].sum())
                bits[name].append(nats[own] / math.log(2) / size[own])
    rows = [_row(name, sums[name], np.concatenate(bits[name])) for name in sums]
    if len(rows) > 1:
        every = np.concatenate([piece for pieces in bits.values() for piece in pieces])
        rows.append(_row("all", np.sum(list(sums.values()), axis=0), every))
    return rows


def _row(name: str, sums: np.ndarray, bits: np.ndarray) -> Row:
    documents, size, tokens, nats = sums.tolist()
    quantiles = tuple(np.quantile(bits, QUANTILES).tolist())
    return Row(name, int(documents), int(size), int(tokens), nats / math.log(2) / size, quantiles)

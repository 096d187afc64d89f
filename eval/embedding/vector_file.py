"""Writes and reads files of vectors: Parquet, with a row for each document and what made them in the metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from configs.common.files import atomic_path
from eval.embedding.projection import Projection

_KEY = b"replica_vectors"
_FORMAT = 1
_DIFFERENT = "its vectors are of another model, and distances between the two mean nothing"


@dataclass(frozen=True)
class MadeBy:
    """What made the vectors of a file.

    Attributes:
        checkpoint: fingerprint.
        tokenizer: fingerprint.
        precision: of the model's matrix products.
        model: run and step, for people.
        version: of Replica.
    """

    checkpoint: str
    tokenizer: str
    precision: str
    model: str
    version: str


def write_vectors(
    file: Path,
    documents: Iterable[tuple[str, str, int]],
    vectors: npt.NDArray[np.float64],
    made_by: MadeBy,
    projection: Projection | None,
) -> Path:
    """Writes a row for each document (`id`, `file`, `tokens`, `vector`), whole or not at all.

    Args:
        file: ends in .parquet.
        documents: id, file and number of tokens of each.
        vectors: (n, d), stored as float32.
        made_by: goes into the metadata, with the projection.
        projection: that the vectors went through.
    """
    ids, files, tokens = zip(*documents, strict=True)
    flat = pa.array(vectors.astype(np.float32).ravel())
    about = {"format": _FORMAT, **asdict(made_by), "projection": None if projection is None else projection.as_json()}
    columns = {
        "id": pa.array(ids, pa.string()),
        "file": pa.array(files, pa.string()),
        "tokens": pa.array(tokens, pa.int64()),
        "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
    }
    table = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(about).encode()})
    with atomic_path(file) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return file


def _about(file: Path) -> dict[str, Any]:
    """Reads what a file says of itself.

    Raises:
        ValueError: when it holds no vectors, or those of another version.
    """
    try:
        about = json.loads((pq.read_schema(file).metadata or {})[_KEY])
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{file} holds no vectors of `replica embed`") from error
    if about.get("format") != _FORMAT:
        raise ValueError(f"{file} was written by another version; make it again with `replica embed`")
    return dict(about)


def read_vectors(file: Path) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Reads ids and vectors (n, d) of a file.

    Raises:
        ValueError: when it holds no vectors.
    """
    _about(file)
    table = pq.read_table(file, columns=["id", "vector"], partitioning=None).combine_chunks()
    width = table.schema.field("vector").type.list_size
    flat = table["vector"].combine_chunks().flatten().to_numpy()
    return table["id"].to_pylist(), flat.reshape(-1, width)


def read_projection(file: Path, made_by: MadeBy) -> Projection:
    """Reads the projection of a file, for documents that are to be projected alike.

    Raises:
        ValueError: when it has none, or its vectors are of another model, tokenizer or precision.
    """
    about = _about(file)
    for name in ("checkpoint", "tokenizer", "precision"):
        if about[name] != getattr(made_by, name):
            raise ValueError(
                f"--like {file}: {_DIFFERENT} ({name} {about[name]} of {about['model']}, here {getattr(made_by, name)} "
                f"of {made_by.model}); embed both with one checkpoint"
            )
    if about["projection"] is None:
        raise ValueError(f"--like {file}: its vectors have all dimensions; leave out --like, and do the same here")
    return Projection.from_json(about["projection"])


def check_target(file: Path, inputs: Sequence[Path] = ()) -> None:
    """Raises `ValueError` for a file that is not to be written: of another kind, with other content, or read from."""
    if file.suffix != ".parquet":
        raise ValueError(f"--out {file}: vectors are written as Parquet; give a name that ends in .parquet")
    if any(file.resolve() == other.resolve() for other in inputs):
        raise ValueError(f"--out {file} is the file of --like; choose another name")
    if file.exists():
        try:
            _about(file)
        except ValueError as error:
            raise ValueError(f"--out {file} is there already and holds something else; choose another name") from error

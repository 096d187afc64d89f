"""Writes small token shards without a stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.tokens.shards import beside, token_dtype, write_index


def write_shard(prefix: Path, documents: Sequence[Sequence[int]], vocab_size: int) -> None:
    """Writes a `.bin`/`.idx` pair from lists of ids in memory."""
    dtype = token_dtype(vocab_size)
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with beside(prefix, ".bin").open("wb") as stream:
        for document in documents:
            stream.write(np.asarray(document, dtype=dtype).tobytes())
    with beside(prefix, ".idx").open("wb") as stream:
        write_index(stream, lengths, dtype)

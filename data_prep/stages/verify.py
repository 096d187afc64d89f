"""Checks prepared data against its manifests: hashes, counts, ids, document ends, the funnel."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from configs.common.files import read_json, sha256_file
from configs.common.layout import MANIFEST
from data_prep.funnel.tally import check
from data_prep.tokens.shards import ShardIndex, SourceShards, beside, load_manifest

_CHUNK_TOKENS = 2**20


def verify(directory: Path) -> str:
    """Reads everything in a data directory again; returns a line that says what was found in order.

    Raises:
        ValueError: naming the first file that is not as it was made.
    """
    manifest = load_manifest(directory)
    files = 0
    for stage in read_json(directory / MANIFEST)["stages"]:
        for name, known in read_json(directory / stage / MANIFEST)["files"].items():
            path = directory / stage / name
            if not path.is_file() or sha256_file(path) != known["sha256"]:
                raise ValueError(f"{path} is missing or not as it was written; delete {path.parent} and prepare again")
            files += 1
    tokens = 0
    for source in [*manifest.train, *manifest.validation]:
        tokens += _verify_source(source, manifest.vocab_size, manifest.eod_id)
    check(manifest.funnel)
    return f"{directory}: {files} files and {tokens:,} tokens are as they were made, and the funnel adds up"


def _verify_source(source: SourceShards, vocab_size: int, eod_id: int) -> int:
    documents = total = 0
    for prefix in source.prefixes:
        index = ShardIndex.open(prefix)
        tokens = np.memmap(beside(prefix, ".bin"), index.dtype, mode="r")
        lengths = np.asarray(index.lengths, dtype=np.int64)
        if int(lengths.sum()) != len(tokens):
            raise ValueError(f"{prefix}: the index counts {int(lengths.sum())} tokens, the .bin holds {len(tokens)}")
        for start in range(0, len(tokens), _CHUNK_TOKENS):
            largest = int(tokens[start : start + _CHUNK_TOKENS].max())
            if largest >= vocab_size:
                raise ValueError(f"{prefix}: token id {largest}, but the vocabulary has {vocab_size} ids")
        if not (tokens[np.cumsum(lengths) - 1] == eod_id).all():
            raise ValueError(f"{prefix}: a document does not end with the end-of-document id {eod_id}")
        documents += len(lengths)
        total += len(tokens)
    if (documents, total) != (source.documents, source.tokens):
        raise ValueError(f"source {source.name}: {documents} documents and {total} tokens, not as the manifest says")
    return total

r"""Shards read by a reader written from the description of Megatron-LM's format alone, and decoded back to the text.

Layout of `.idx` (megatron/core/datasets/indexed_dataset.py, `_IndexWriter`): 9 bytes `MMIDIDX\0\0`; uint64 version 1;
uint8 type code (4 int32, 8 uint16); uint64 number of sequences S; uint64 number of document indices D; S int32
sequence lengths; S int64 byte pointers into `.bin`; D int64 document indices, the first 0 and the last S.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from configs.schema.data import Normalize
from configs.schema.recipe import Recipe
from data_prep.stages.pipeline import prepare_inline
from data_prep.text.normalize import normalize
from data_prep.tokens.encode import NASTY
from data_prep.tokens.shards import TokenStream
from data_prep.tokens.vocab import Vocab

TEXTS = [
    f"{text}\n{number} don't stop 中文没有空格 😀👩‍👩‍👧 \x07\x1b[0m <|endoftext|>"
    for number, text in enumerate(NASTY * 20)
]


def megatron_read(prefix: Path) -> list[list[int]]:
    """The documents of a shard as lists of ids."""
    data = (prefix.parent / (prefix.name + ".idx")).read_bytes()
    assert data[:9] == b"MMIDIDX\x00\x00"
    version, code, sequences, indices = struct.unpack_from("<QBQQ", data, 9)
    assert version == 1
    kind = {4: "<i4", 8: "<u2"}[code]
    start = 9 + 8 + 1 + 8 + 8
    lengths = struct.unpack_from(f"<{sequences}i", data, start)
    pointers = struct.unpack_from(f"<{sequences}q", data, start + 4 * sequences)
    documents = struct.unpack_from(f"<{indices}q", data, start + 12 * sequences)
    assert len(data) == start + 12 * sequences + 8 * indices
    assert list(documents) == list(range(sequences + 1))
    tokens = (prefix.parent / (prefix.name + ".bin")).read_bytes()
    return [
        np.frombuffer(tokens, kind, count=length, offset=pointer).tolist()
        for length, pointer in zip(lengths, pointers, strict=True)
    ]


@pytest.mark.parametrize(
    "tokenizer", [{"kind": "byte"}, {"kind": "char"}, {"vocab_size": 300}, {"vocab_size": 300, "pattern": "gpt4"}]
)
def test_round_trip(tmp_path: Path, tokenizer: dict[str, object]) -> None:
    rows = [{"id": f"d{n}", "text": text, "url": f"http://x/{n}"} for n, text in enumerate(TEXTS)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "out": str(tmp_path / "run"),
            "data": {
                "sources": [{"name": "s", "path": str(tmp_path / "in.jsonl")}],
                "tokenizer": tokenizer,
                "quality": {"max_unprintable_fraction": 1.0},
                "validation_fraction": 0.2,
                "unit_bytes": 4096,
                "shard_tokens": 3000,
            },
            "model": {"num_layers": 1, "hidden_size": 8, "num_heads": 1},
            "train": {"steps": 1},
        }
    )
    manifest = prepare_inline(recipe)
    vocab = Vocab.load(manifest.tokenizer)
    decoded: dict[str, str] = {}
    for source in [*manifest.train, *manifest.validation]:
        stream = TokenStream(source.prefixes, "s", manifest.vocab_size)
        position = 0
        for prefix in source.prefixes:
            sidecar = pq.read_table(prefix.parent / (prefix.name + ".parquet")).to_pylist()
            for ids, row in zip(megatron_read(prefix), sidecar, strict=True):
                assert ids[-1] == manifest.eod_id
                assert manifest.eod_id not in ids[:-1]
                assert row["tokens"] == len(ids)
                assert stream.read(position, len(ids)).tolist() == ids
                (span,) = stream.documents(position, len(ids))
                assert (span.id, span.url, span.tokens) == (row["id"], row["url"], len(ids))
                position += len(ids)
                decoded[row["id"]] = vocab.decode(ids)
                assert int(vocab.token_bytes[ids].sum()) == len(decoded[row["id"]].encode()) == row["bytes"]
        assert position == stream.length == source.tokens
    assert decoded == {row["id"]: normalize(row["text"], Normalize()) for row in rows}
    assert sum(len(source.prefixes) for source in manifest.train) > 1
    assert manifest.validation

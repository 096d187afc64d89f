"""Dedup, splits, shard plans, streams and the funnel, each against a direct computation."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.schema.sources import Source
from data_prep.funnel.tally import Funnel, check
from data_prep.tokens.pack import plan_shards
from data_prep.tokens.shards import ShardIndex, TokenStream, beside, token_dtype, write_index
from data_prep.tokens.splits import split_of
from data_prep.workers.stage import Stage
from tests.parts.small_shards import write_shard


def test_split_is_a_hash_of_the_id() -> None:
    source = Source(name="s", path="x.txt")
    splits = [split_of(f"document {n}", source, 0.1) for n in range(20_000)]
    assert abs(splits.count("validation") - 2000) < 150
    assert splits == [split_of(f"document {n}", source, 0.1) for n in range(20_000)]
    assert split_of("any", source.model_copy(update={"split": "validation"}), 0.0) == "validation"
    assert {split_of(f"{n}", source, 0.0) for n in range(100)} == {"train"}


def test_shards_are_closed_when_full() -> None:
    counts = {"a": 5, "b": 0, "c": 6, "d": 3, "e": 20, "f": 1}
    assert plan_shards(counts, 10) == [("a", "c"), ("d", "e"), ("f",)]
    assert plan_shards({"a": 0}, 10) == []


def test_funnel_adds_up_or_says_so() -> None:
    funnel = Funnel(["s"])
    funnel.add("s", "read/read", 10, 1000)
    funnel.add("s", "exact/duplicate", 3, 305, 40)
    funnel.add("s", "normalize/normalized", 0, -5)
    funnel.add("s", "shards/train", 7, 700, 90)
    rows = funnel.rows()
    assert [row["reason"] for row in rows] == ["read", "normalized", "duplicate", "train", "validation"]
    assert rows[0]["tokens"] == 130
    rows[2]["documents"] += 1
    with pytest.raises(ValueError, match="does not add up"):
        check(rows)


@pytest.mark.parametrize("vocab_size", [100, 65499, 65500, 200_000])
def test_streams_read_over_shards(tmp_path: Path, vocab_size: int) -> None:
    assert token_dtype(vocab_size) == (np.uint16 if vocab_size < 65500 else np.int32)
    documents = [[vocab_size - 1, 1, 0], [2, 0], [0], [3, 4, 5, 0]]
    write_shard(tmp_path / "a", documents[:2], vocab_size)
    write_shard(tmp_path / "empty", [], vocab_size)
    write_shard(tmp_path / "b", documents[2:], vocab_size)
    stream = TokenStream([tmp_path / name for name in ("a", "empty", "b")], "s", vocab_size)
    tokens = [token for document in documents for token in document]
    owner = [(n, position) for n, document in enumerate(documents) for position in range(len(document))]
    assert stream.length == len(tokens)
    for start in range(len(tokens) + 1):
        for count in range(len(tokens) - start + 1):
            assert stream.read(start, count).tolist() == tokens[start : start + count]
            spans = stream.documents(start, count)
            assert sum(span.tokens for span in spans) == count
            assert [span.offset_in_document for span in spans] == [
                position
                for index, (n, position) in enumerate(owner[start : start + count])
                if index == 0 or owner[start + index - 1][0] != n
            ]
    assert stream.read(0, 3).dtype == np.int64
    with pytest.raises(IndexError):
        stream.read(len(tokens), 1)


def test_a_trillion_tokens_open_at_once(tmp_path: Path) -> None:
    tokens = 10**12
    with beside(tmp_path / "huge", ".bin").open("wb") as file:
        file.truncate(2 * tokens)
    with beside(tmp_path / "huge", ".idx").open("wb") as stream:
        write_index(stream, np.array([10**9] * 1000), np.dtype(np.uint16))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    stream_ = TokenStream([tmp_path / "huge"])
    assert stream_.length == tokens
    for start in range(0, tokens - 2048, tokens // 1000):
        assert not stream_.read(start, 2048).any()
    (span,) = stream_.documents(tokens - 5, 5)
    assert (span.id, span.offset_in_document) == ("document 999", 10**9 - 5)
    assert time.monotonic() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_broken_shards_are_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", [[7, 0]], 10)
    with pytest.raises(ValueError, match=r"token id 7 at position 0, but the vocabulary has 5 ids.*another tokenizer"):
        TokenStream([tmp_path / "a"], vocab_size=5).read(0, 2)
    (tmp_path / "a.idx").write_bytes(b"something else entirely, long enough for a header")
    with pytest.raises(ValueError, match="not a Megatron index"):
        ShardIndex.open(tmp_path / "a")
    with pytest.raises(ValueError, match=r"needs both a \.bin and a \.idx"):
        TokenStream([tmp_path / "absent"])


def test_stage_is_skipped_by_fingerprint_and_files_alone(tmp_path: Path) -> None:
    inputs: dict[str, Any] = {"a": 1}
    stage = Stage(tmp_path / "s", inputs)
    stage.begin()
    stage.commit("u", {})
    (tmp_path / "s" / "file").write_bytes(b"12345")
    assert stage.read() is None
    Stage(tmp_path / "s", inputs).begin()
    assert stage.committed() == {"u"}, "a killed run's units are kept"
    (tmp_path / "s" / ".part.0a1b.partial").touch()
    stage.finish({}, {"file": {"bytes": 5}})
    assert not list((tmp_path / "s").glob("*.partial")), "a worker that died has left it"
    assert Stage(tmp_path / "s", inputs).read() is not None
    assert Stage(tmp_path / "s", {"a": 2}).read() is None
    (tmp_path / "s" / "file").write_bytes(b"1234")
    assert stage.read() is None
    Stage(tmp_path / "s", {"a": 2}).begin()
    assert not (tmp_path / "s" / "file").exists()

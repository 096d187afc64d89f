"""Token shards of a stranger: counts, lengths and places that no shard has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_prep.tokens.shards import MAGIC, ShardIndex, TokenStream, beside, load_manifest
from pretrain.batches.packing import _documents
from tests.parts.small_shards import write_shard
from tests.parts.training_run import prepare_data

HEADER = 34
LENGTHS = [3, 5, 0, 4]


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    write_shard(tmp_path / "a", [list(range(length)) for length in LENGTHS], 300)
    return tmp_path / "a"


def rewrite(prefix: Path, at: int, content: bytes) -> None:
    file = beside(prefix, ".idx")
    data = file.read_bytes()
    file.write_bytes(data[:at] + content + data[at + len(content) :])


@pytest.mark.parametrize("count", [2**62, 2**64 - 1, 2**33, 5])
@pytest.mark.parametrize("field", [HEADER - 16, HEADER - 8])
def test_counts_beyond_the_file(prefix: Path, count: int, field: int) -> None:
    assert beside(prefix, ".idx").read_bytes().startswith(MAGIC)
    rewrite(prefix, field, (count + (field == HEADER - 8)).to_bytes(8, "little") if count < 2**63 else b"\xff" * 8)
    with pytest.raises(ValueError, match=r"a\.idx has \d+ bytes, but [\d,]+ documents need"):
        ShardIndex.open(prefix)


def test_an_index_that_was_cut_short(prefix: Path) -> None:
    file = beside(prefix, ".idx")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut short"):
        TokenStream([prefix])


@pytest.mark.parametrize(
    ("at", "content"),
    [
        (HEADER, np.array([-55], "<i4")),
        (HEADER, np.array([2**31 - 1], "<i4")),
        (HEADER, np.array([2], "<i4")),  # pointers no longer follow
        (HEADER + 4, np.array([-1], "<i4")),
        (HEADER + 12, np.array([40], "<i4")),  # beyond the end of the .bin
        (HEADER + 16, np.array([2], "<i8")),
        (HEADER + 16, np.array([-2], "<i8")),
        (HEADER + 24, np.array([2**62], "<i8")),
        (HEADER + 24, np.array([-(2**62)], "<i8")),
        (HEADER + 24, np.array([7], "<i8")),  # in the middle of an id
    ],
)
def test_documents_that_do_not_follow_one_another(prefix: Path, at: int, content: np.ndarray) -> None:
    rewrite(prefix, at, content.tobytes())
    message = r"a\.idx: documents [\d,]+ to [\d,]+ do not lie one after the other"
    with pytest.raises(ValueError, match=message):
        ShardIndex.open(prefix).rows(0, 4)
    stream = TokenStream([prefix])
    for first in range(stream.length):
        for count in (1, stream.length - first):
            try:
                spans = stream.documents(first, count)
            except ValueError as error:
                assert "do not lie one after the other" in str(error)
            else:
                assert all(0 <= span.tokens <= count and span.offset_in_document >= 0 for span in spans)


def test_whole_shards_are_read_as_they_were(prefix: Path) -> None:
    index = ShardIndex.open(prefix)
    starts, sizes = index.rows(0, 100)
    assert starts.tolist() == [0, 3, 8, 8] and sizes.tolist() == LENGTHS
    assert [part.tolist() for part in index.rows(1, 3)] == [[3, 8], [5, 0]]
    assert [span.tokens for span in TokenStream([prefix]).documents(1, 10)] == [2, 5, 0, 3]


def test_packing_refuses_them(tmp_path: Path) -> None:
    data = load_manifest(prepare_data(tmp_path))

    def all_documents() -> Iterator[object]:
        yield from _documents(data.train[0])

    assert list(all_documents())
    rewrite(data.train[0].prefixes[0], HEADER, np.array([-55], "<i4").tobytes())
    with pytest.raises(ValueError, match="do not lie one after the other"):
        list(all_documents())

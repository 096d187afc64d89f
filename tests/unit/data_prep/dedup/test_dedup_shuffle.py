"""Deduplication: the shuffle, exact duplicates and connected components."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.dedup import shuffle
from data_prep.dedup.components import components_in_rounds, keyed_for, smallest_members
from data_prep.dedup.exact import ExactDeduplication
from data_prep.dedup.shuffle import Exchange, hash_ranges, ordered
from data_prep.workers.stage import Stage
from tests.parts.dedup_parts import after, contents, make_parts, make_stage, run_backwards, run_inline, texts_left


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    made = Stage(tmp_path / "stage", {})
    made.begin()
    return made


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merges and ranges of some tens of records."""
    monkeypatch.setattr(shuffle, "MERGE_RECORDS", 40)
    monkeypatch.setattr(shuffle, "_SMALLEST_WINDOW", 3)
    monkeypatch.setattr(shuffle, "RANGE_RECORDS", 30)


@pytest.mark.parametrize(("writers", "width", "keys"), [(1, 1, 9), (7, 2, 5), (30, 3, 2**63), (12, 2, 1)])
def test_shuffle_gives_every_record_to_its_range(
    stage: Stage, small_memory: None, writers: int, width: int, keys: int
) -> None:
    chance = np.random.default_rng(writers)
    exchange = Exchange(stage, "x", width, writers)
    everything = []
    for writer in range(writers):
        records = chance.integers(0, keys, (int(chance.integers(0, 60)), width), dtype=np.uint64)
        exchange.put(writer, records)
        everything.append(records)
    expected = ordered(np.concatenate(everything))
    assert exchange.merge(run_inline(stage), 1.0) == len(expected)
    assert exchange.groups == int(np.ceil(np.sqrt(writers)))
    assert not list(stage.directory.rglob("*.in.*.records"))
    edges = [0, *sorted({int(edge) for edge in chance.integers(0, keys, 4)}), 2**64]
    pieces = [exchange.read(low, high) for low, high in itertools.pairwise(edges)]
    assert np.array_equal(np.concatenate(pieces), expected)
    assert all(np.array_equal(piece, ordered(piece)) for piece in pieces)


def test_blocks_of_a_writer_are_merged(stage: Stage, small_memory: None) -> None:
    chance = np.random.default_rng(0)
    blocks = [ordered(chance.integers(0, 50, (n, 2), dtype=np.uint64)) for n in (90, 0, 33, 1)]
    exchange = Exchange(stage, "x", 2, 1)
    exchange.put_blocks(0, iter(blocks))
    exchange.merge(run_inline(stage), 1.0)
    assert np.array_equal(exchange.read(0, 2**64), ordered(np.concatenate(blocks)))


def test_hash_ranges_cover_all_keys() -> None:
    ranges = hash_ranges(5, 2)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 2**64
    assert len(ranges) == 3
    assert all(left[1] == right[0] for left, right in itertools.pairwise(ranges))


@pytest.mark.parametrize("seed", range(2))
def test_exact_keeps_the_first(tmp_path: Path, small_memory: None, seed: int) -> None:
    chance = random.Random(seed)
    texts = [[str(chance.randrange(150)) for _ in range(chance.randrange(80))] for _ in range(9)]
    parts = make_parts(tmp_path / "documents", texts)
    directory, _ = make_stage(tmp_path, ExactDeduplication(), parts)
    seen: set[str] = set()
    expected = []
    for rows in texts:
        expected.append([(row, text) for row, text in enumerate(rows) if not (text in seen or seen.add(text))])
    assert texts_left(after(parts, directory)) == expected
    first = contents(directory)
    other, _ = make_stage(tmp_path / "again", ExactDeduplication(), parts, run_backwards)
    assert contents(other) == first


def test_exact_says_of_whom(tmp_path: Path) -> None:
    parts = make_parts(tmp_path / "documents", [["a", "b"], ["c", "b", "c"], ["c"]])
    directory, _ = make_stage(tmp_path, ExactDeduplication(), parts)
    details = [pq.read_table(file)["detail"].to_pylist() for file in sorted(directory.glob("*.parquet"))]
    assert details == [["same as 000-00000-000000:1", "same as 000-00001-000000:0"], ["same as 000-00001-000000:0"]]


def graph(kind: str, seed: int) -> np.ndarray:
    chance = np.random.default_rng(seed)
    if kind == "path":  # the worst case of labels that travel along edges
        nodes = chance.permutation(90).astype(np.uint64)
        return np.stack([nodes[:-1], nodes[1:]], axis=1)
    if kind == "star":
        return np.stack([np.full(200, 77), chance.integers(0, 400, 200)], axis=1).astype(np.uint64)
    if kind == "none":
        return np.zeros((0, 2), np.uint64)
    return chance.integers(0, 200, (120, 2)).astype(np.uint64) << np.uint64(30)


def by_hand(edges: np.ndarray) -> list[list[int]]:
    group = {node: {node} for node in edges.ravel().tolist()}
    for left, right in edges.tolist():
        if group[left] is not group[right]:
            group[left] |= group[right]
            for node in group[right]:
                group[node] = group[left]
    return sorted([node, min(members)] for node, members in group.items() if node != min(members))


@pytest.mark.parametrize("kind", ["path", "star", "none", "random"])
def test_components(stage: Stage, small_memory: None, kind: str) -> None:
    edges = graph(kind, 0)
    edges = edges[edges[:, 0] != edges[:, 1]]
    expected = by_hand(edges)
    assert smallest_members(edges).tolist() == expected
    exchange = Exchange(stage, "edges", 3, 2)
    exchange.put(0, keyed_for(edges[::2], large=True))
    exchange.put(1, keyed_for(edges[1::2], large=True))
    result, count = components_in_rounds(exchange, exchange.merge(run_inline(stage), 1.0), run_inline(stage), 1.0)
    assert count == len(expected)
    assert sorted(result.read(0, 2**64)[:, 1:].tolist()) == expected

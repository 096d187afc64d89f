"""Deduplication: near-duplicates, on random texts and on a manual in five versions."""

from __future__ import annotations

import io
import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zstandard

from configs.schema.data import NearDuplicates
from data_prep.dedup import near, near_tasks, pairs, shuffle
from data_prep.dedup.components import smallest_members
from data_prep.dedup.minhash import MinHash, band_keys, choose_bands
from data_prep.dedup.near import NearDeduplication
from data_prep.dedup.shingles import Shingler, join
from tests.parts.dedup_parts import after, contents, make_parts, make_stage, run_backwards, texts_left

SAMPLE = Path(__file__).parents[3] / "data" / "powershell-docs-versions.jsonl.zst"


@pytest.fixture(scope="module")
def manual() -> list[str]:
    with SAMPLE.open("rb") as file:
        stream = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        return [json.loads(line)["text"] for line in stream]


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffle, "MERGE_RECORDS", 300)
    monkeypatch.setattr(shuffle, "_SMALLEST_WINDOW", 10)
    monkeypatch.setattr(shuffle, "RANGE_RECORDS", 400)
    monkeypatch.setattr(near, "VERIFY_PAIRS", 50)
    monkeypatch.setattr(near_tasks, "_SET_MEMORY", 20_000)
    monkeypatch.setattr(near_tasks, "_BATCH_CHARACTERS", 30_000)


def plain_set(text: str, length: int = 5) -> set[tuple[str, ...]]:
    """Shingles without any of the program's own means."""
    words = re.sub(r"[\W_]+", " ", text.lower()).split()
    if len(words) < length:
        return {tuple(words)} if words else set()
    return set(zip(*(words[start:] for start in range(length)), strict=False))


def similar_pairs(texts: list[str], similarity: float) -> set[tuple[int, int]]:
    sets = [plain_set(text) for text in texts]
    return {
        (left, right)
        for left, right in itertools.combinations(range(len(texts)), 2)
        if len(sets[left] & sets[right]) >= similarity * len(sets[left] | sets[right]) > 0
    }


def in_parts(texts: list[str], count: int) -> list[list[str]]:
    return [texts[number * len(texts) // count : (number + 1) * len(texts) // count] for number in range(count)]


def dropped(directory: Path, parts: list[Any]) -> set[int]:
    bases = itertools.accumulate((part.rows for part in parts), initial=0)
    gone: set[int] = set()
    for part, base in zip(parts, bases, strict=False):
        file = directory / f"{part.name}.parquet"
        if file.is_file():
            gone |= {base + row for row in pq.read_table(file)["row"].to_pylist()}
    return gone


@pytest.mark.slow
def test_found_pairs_of_a_manual(
    tmp_path: Path, manual: list[str], monkeypatch: pytest.MonkeyPatch, small_memory: None
) -> None:
    found: set[tuple[int, int]] = set()
    verify = near_tasks.verify_pairs

    def watched(task: near_tasks.RangeTask) -> None:
        verify(task)
        records = np.fromfile(task.result._input(task.index), "<u8").reshape(-1, 3)[:, 1:]
        found.update((left, right) for left, right in records.tolist() if left < right)

    monkeypatch.setattr(near_tasks, "verify_pairs", watched)
    parts = make_parts(tmp_path / "documents", in_parts(manual, 7))
    directory, manifest = make_stage(tmp_path, NearDeduplication(NearDuplicates()), parts)
    true = similar_pairs(manual, 0.8)
    assert len(true) > 200
    assert len(found & true) >= 0.95 * len(found)
    assert len(found & true) >= 0.95 * len(true)
    assert manifest["verified"] == len(found) <= manifest["candidates"] < 3 * len(found)
    labels = smallest_members(np.array(sorted(found), dtype=np.uint64))
    assert dropped(directory, parts) == set(labels[:, 0].tolist())


@pytest.mark.slow
def test_same_verdicts_whoever_works(tmp_path: Path, manual: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    parts = make_parts(tmp_path / "documents", in_parts(manual, 5))
    one, _ = make_stage(tmp_path / "one", NearDeduplication(NearDuplicates()), parts)
    expected = contents(one)
    assert len(expected) == 6
    monkeypatch.setattr(shuffle, "RANGE_RECORDS", 400)
    monkeypatch.setattr(shuffle, "MERGE_RECORDS", 300)
    monkeypatch.setattr(near, "VERIFY_PAIRS", 50)
    two, _ = make_stage(tmp_path / "two", NearDeduplication(NearDuplicates()), parts, run_backwards)
    assert contents(two) == expected
    rounds, _ = make_stage(tmp_path / "rounds", NearDeduplication(NearDuplicates(), memory_edges=0), parts)
    assert contents(rounds) == expected


def test_keeps_first_or_longest(tmp_path: Path, small_memory: None) -> None:
    words = [f"w{number}" for number in range(400)]
    texts = [" ".join(words), "other " * 30, " ".join([*words, "tail"]), " ".join([*words[:-1], "end"]), "", "a b"]
    parts = make_parts(tmp_path / "documents", in_parts(texts, 2))
    for keep, gone in (("first", {2, 3}), ("longest", {0, 3})):
        directory, _ = make_stage(tmp_path, NearDeduplication(NearDuplicates(keep=keep)), parts)
        assert dropped(directory, parts) == gone
    details = pq.read_table(directory / f"{parts[0].name}.parquet")["detail"].to_pylist()
    assert details == ["like 000-00000-000000:2"]


def test_verification_takes_out_the_unlike(tmp_path: Path, manual: list[str]) -> None:
    chance = random.Random(1)
    words = [f"w{number}" for number in range(600)]
    texts = [" ".join("x" if chance.random() < 0.04 else word for word in words) for _ in range(60)]
    parts = make_parts(tmp_path / "documents", in_parts(texts, 3))
    _, loose = make_stage(tmp_path, NearDeduplication(NearDuplicates(bands=40, rows=2)), parts)
    assert loose["candidates"] > 500 > loose["verified"]
    assert loose["verified"] == len(similar_pairs(texts, 0.8) & windowed(60))
    directory, _ = make_stage(tmp_path, NearDeduplication(NearDuplicates(bands=40, rows=2, verify=False)), parts)
    assert len(dropped(directory, parts)) == 59


def windowed(count: int) -> set[tuple[int, int]]:
    """Pairs that one bucket with all documents names."""
    return {
        (left, right)
        for left, right in itertools.combinations(range(count), 2)
        if left == 0 or right - left <= pairs.WINDOW
    }


def test_crowded_buckets_stay_linear(tmp_path: Path) -> None:
    """A text met a thousand times costs a few pairs a copy, not the square, and one copy stays."""
    words = " ".join(f"w{number}" for number in range(60))
    rows = [f"{words} page {number % 3}" for number in range(900)]
    parts = make_parts(tmp_path / "documents", in_parts([*rows, "something else entirely is here"], 3))
    directory, manifest = make_stage(tmp_path, NearDeduplication(NearDuplicates()), parts)
    assert texts_left(after(parts, directory)) == [[(0, rows[0])], [], [(300, "something else entirely is here")]]
    assert manifest["candidates"] < 60 * len(rows)


def test_no_key_is_sent_more_often_than_the_limit() -> None:
    records = np.stack([np.repeat(np.arange(3), [500, 10, 65]), np.arange(575)], axis=1).astype(np.uint64)
    sent = pairs.spread_buckets(records, salt=4)
    _, counts = np.unique(sent[:, 0], return_counts=True)
    assert counts.max() <= pairs.BUCKET_LIMIT + pairs.WINDOW + 1
    assert np.array_equal(pairs.bucket_pairs(sent), pairs.bucket_pairs(records))


# ------------------------------------------------------------------------------------------------- shingles, signatures
def test_sets_are_those_of_the_plain_definition(manual: list[str]) -> None:
    texts = [*manual[:20], "", "...", "one two", "Ein Wort_zwei-drei, vier's fünf SECHS", "a b c d e"]
    for made, text in zip(Shingler(5).sets(texts), texts, strict=True):
        assert len(made) == len(plain_set(text))
        assert len(Shingler(5).sets([text])[0]) == len(made)


def test_scripts_without_spaces_are_taken_by_character() -> None:
    words = Shingler(3)
    assert len(words.sets(["我们去北京"])[0]) == 3
    assert np.array_equal(words.sets(["我们，去 北京"])[0], words.sets(["我们去北京"])[0])
    letters = Shingler(3, "character")
    assert np.array_equal(letters.sets(["AB-c d"])[0], letters.sets(["abcd"])[0])
    assert len(letters.sets(["abcd"])[0]) == 2


def test_estimates_are_as_good_as_independent_permutations() -> None:
    """The error of 128 hashes is that of 128 independent draws, sqrt(J (1 - J) / 128), and without bias."""
    chance = np.random.default_rng(5)
    hashes, trials = 128, 300
    for shared in (100, 800, 950):
        errors = []
        for _ in range(trials):
            pool = chance.integers(0, 2**32, 2000 - shared, dtype=np.uint32)
            left, right = pool[:1000], pool[1000 - shared :]
            true = shared / len(pool)
            signatures = MinHash(hashes).signatures(np.concatenate([left, right]), np.array([1000, 1000]))
            errors.append(float(np.mean(signatures[0] == signatures[1])) - true)
        expected = np.sqrt(true * (1 - true) / hashes)
        assert abs(np.mean(errors)) < 4 * expected / np.sqrt(trials)
        assert 0.85 * expected < np.std(errors) < 1.15 * expected


def test_signatures_do_not_depend_on_batches(manual: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*manual[:7], "", "one"]
    hashes, counts = Shingler(5).shingles(texts)
    whole = MinHash(32).signatures(hashes, counts)
    monkeypatch.setattr("data_prep.dedup.minhash._BATCH_SHINGLES", 37)
    assert np.array_equal(MinHash(32).signatures(hashes, counts), whole)
    images = MinHash(32)
    plain = (hashes[: counts[0], None] * images._factors + images._terms).min(axis=0)
    assert np.array_equal(whole[0], plain)
    assert len(np.unique(band_keys(whole, 8, 4))) > 8


def test_short_texts_among_others() -> None:
    words = np.arange(20, dtype=np.uint64)
    counts = np.array([2, 7, 0, 1, 10])
    hashes, found = join(words, counts, 3)
    assert found.tolist() == [1, 5, 0, 1, 8]
    alone = [join(words[start : start + n], np.array([n]), 3)[0] for start, n in ((0, 2), (2, 7), (9, 1), (10, 10))]
    assert np.array_equal(hashes, np.concatenate(alone))


def test_bands_from_similarity() -> None:
    assert choose_bands(0.8, 0.01) == (16, 6)
    assert choose_bands(0.8, 0.01, rows=8) == (16, 8)
    assert choose_bands(0.8, 0.01, bands=14, rows=8) == (14, 8)
    for similarity in (0.3, 0.5, 0.7, 0.9, 0.99):
        bands, rows = choose_bands(similarity, 0.01)
        assert bands * rows <= 128
        assert (1 - similarity**rows) ** bands <= 0.01

"""Best-fit packing: against a naive one, nothing lost, and as pure a function of the step as cut windows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pretrain.batches.packing
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest, ShardIndex, TokenStream, load_manifest
from data_prep.tokens.vocab import Vocab
from pretrain.batches.packing import best_fit, load_packing, packing_lines
from pretrain.batches.source import BatchSource
from pretrain.batches.trace import traced
from pretrain.checkpoint.compatible import check_belongs
from pretrain.checkpoint.manifest import CheckpointInfo
from tests.parts.training_run import prepare_data, tiny_recipe

CONTEXT = 32  # of `tiny_recipe`; the documents of `prepare_data` have about 320 tokens


def naive(lengths: list[int], capacity: int) -> list[int]:
    """How full the bins get: pieces one at a time, longest first, into the fullest bin with room."""
    bins: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [filled for filled in bins if sum(filled) + length <= capacity]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            bins.append([length])
    return sorted(sum(filled) for filled in bins)


@pytest.mark.parametrize("seed", range(30))
def test_packing_equals_naive_best_fit(seed: int) -> None:
    random = np.random.default_rng(seed)
    capacity = int(random.choice([1, 7, 32, 100, 1000]))
    sizes = random.integers(1, capacity + 1, random.integers(1, 400))
    if seed % 3 == 0:  # short pieces, many of one length
        sizes = np.minimum(1 + random.geometric(8 / capacity, 400), capacity) if capacity > 8 else sizes
    bins = best_fit(sizes, capacity)
    assert sorted(np.bincount(bins, sizes).tolist()) == naive(sizes.tolist(), capacity)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_data(tmp_path_factory.mktemp("data"), {"a": 9_000, "b": 3_000})


def packed(directory: Path, data: Path, **train: Any) -> tuple[Recipe, BatchSource, DataManifest]:
    recipe = tiny_recipe(directory, data, packing="best_fit", **train)
    manifest = load_manifest(recipe.data_directory)
    return recipe, BatchSource(recipe, manifest), manifest


def test_an_epoch_is_every_token_of_every_document_once(tmp_path: Path, data: Path) -> None:
    _, batches, manifest = packed(tmp_path, data, global_batch_size=1, document_masking=True)
    eod = manifest.eod_id
    trained: Counter[int] = Counter()
    found = total_bytes = 0
    places: Counter[tuple[str, str, int]] = Counter()  # source, document and token of it
    for step in range(batches.windows):
        batch = batches.batch(step)
        assert batch.fresh and batch.positions is not None
        row, inputs = batch.targets[0], batch.tokens[0]
        used = int(batch.weights.sum())
        assert batch.weights[0].tolist() == [1.0] * used + [0.0] * (CONTEXT - used)
        begin = 0
        for span in batches.documents(step)[0]:
            end = begin + span.tokens
            assert torch.equal(inputs[begin + 1 : end], row[begin : end - 1])
            assert span.offset_in_document or inputs[begin] == eod
            assert batch.positions[0, begin:end].tolist() == list(range(span.tokens))
            offset = span.offset_in_document
            places.update((span.source, span.id, offset + place) for place in range(span.tokens))
            begin = end
        assert begin == used
        trained.update(row[:used].tolist())
        found, total_bytes = found + used, total_bytes + batch.target_bytes
    assert not batches.batch(batches.windows).fresh
    expected: Counter[int] = Counter()
    in_shards: Counter[tuple[str, str, int]] = Counter()
    for part in manifest.train:
        stream = TokenStream(part.prefixes)
        expected.update(stream.read(0, stream.length).tolist())
        for prefix in part.prefixes:
            for number, tokens in enumerate(ShardIndex.open(prefix).lengths.tolist()):
                in_shards.update((part.name, f"document {number}", place) for place in range(tokens))
    assert places == in_shards
    assert trained == expected and found == sum(part.tokens for part in manifest.train)
    assert total_bytes == found - expected[eod]  # a byte-level vocabulary


def test_batches_do_not_depend_on_ranks_or_on_who_packed(tmp_path: Path, data: Path) -> None:
    again = prepare_data(tmp_path / "again", {"a": 9_000, "b": 3_000})
    for masking in (False, True):
        _, batches, _ = packed(tmp_path, data, document_masking=masking)
        expected = [batches.digest(step) for step in range(60)]
        assert len(set(expected)) == 60
        for ranks in (2, 4):
            assert [batches.digest(step, ranks) for step in range(60)] == expected
        assert packed(tmp_path, again, document_masking=masking)[1].digest(37) == expected[37]
    assert packed(tmp_path, data)[1].digest(0) != BatchSource(tiny_recipe(tmp_path, data), load_manifest(data)).digest(
        0
    )


def test_blocks_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = prepare_data(tmp_path / "data")
    monkeypatch.setattr(pretrain.batches.packing, "PACKING_BATCH", 5)
    monkeypatch.setattr(pretrain.batches.packing, "_READ_DOCUMENTS", 3)
    monkeypatch.setattr(pretrain.batches.packing, "_READ_TOKENS", 700)
    manifest = load_manifest(data)
    packing = load_packing(manifest, manifest.train[0], CONTEXT)
    places = sorted(zip(packing.starts.tolist(), packing.lengths.tolist(), strict=True))
    assert [start for start, _ in places] == np.cumsum([0, *(length for _, length in places)])[:-1].tolist()
    assert sum(packing.lengths.tolist()) == packing.tokens == manifest.train[0].tokens
    assert packing.documents == packing.cut_documents == manifest.train[0].documents
    assert packing.offsets[-1] == len(packing.starts)


def test_it_says_how_well(tmp_path: Path, data: Path) -> None:
    manifest = load_manifest(data)
    lines = packing_lines(manifest, 512)
    packing = load_packing(manifest, manifest.train[0], 512)
    assert packing.cut_documents == 0 < packing.cut_by_windows <= packing.documents
    assert lines[0].startswith(f"packing a: {packing.windows} windows, {packing.utilisation:.2%} full; 0.00% of")
    assert packing.utilisation == packing.tokens / (packing.windows * 512)
    stamp = sorted((data / "packing").iterdir())
    packing_lines(manifest, 512)
    assert sorted((data / "packing").iterdir()) == stamp


def test_trace_names_the_documents_and_their_words(tmp_path: Path, data: Path) -> None:
    _, batches, manifest = packed(tmp_path, data)
    spans = list(traced(batches, Vocab.load(manifest.tokenizer), 3))
    assert {span.row for span in spans} == set(range(8))
    begins = [span for span in spans if span.offset == 0]
    assert all(span.words.startswith(f"{span.source} ") for span in begins) and begins


def test_a_run_cannot_go_on_with_another_packing(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, _, manifest = packed(tmp_path, data)
    monkeypatch.setattr(CheckpointInfo, "recipe", property(lambda _: tiny_recipe(tmp_path, data)))
    tokenizer = Vocab.load(manifest.tokenizer).fingerprint
    info = CheckpointInfo(Path("c"), 3, 0, "", manifest.fingerprint, tokenizer, {}, {}, {})
    with pytest.raises(ValueError, match=r"train.packing = stream, but now it is best_fit"):
        check_belongs(info, recipe, manifest)


def test_the_example_of_best_fit() -> None:
    assert best_fit(np.array([5, 3, 3, 2]), 8).tolist() == [0, 0, 1, 1]

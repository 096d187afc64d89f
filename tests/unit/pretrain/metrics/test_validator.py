"""Bits per byte of the validation split: of each source, of all, and of the frequencies of tokens alone."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from configs.common.files import read_json, write_json
from data_prep.tokens.shards import TokenStream, load_manifest
from pretrain.batches.source import Batch
from pretrain.metrics.validation import Validator
from tests.parts.training_run import prepare_data, tiny_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data whose validation split has three sources, the last of them empty."""
    directory = prepare_data(tmp_path_factory.mktemp("data"), {"one": 3000, "other": 1500})
    manifest = read_json(directory / "manifest.json")
    empty = {**manifest["splits"]["train"][0], "name": "empty", "shards": [], "tokens": 0, "documents": 0, "bytes": 0}
    manifest["splits"]["validation"] = [*manifest["splits"]["train"], empty]
    write_json(directory / "manifest.json", manifest)
    return directory


class Engine:
    """One rank of a model that gives each target as many nats as its id is large."""

    device = torch.device("cpu")
    plan = SimpleNamespace(micro_batch=4)

    def __init__(self, rank: int = 0, ranks: int = 1) -> None:
        self.rows = SimpleNamespace(rank=rank, count=ranks, cut=lambda batch: batch)
        self.passes = 0

    def score(self, batch: Batch) -> torch.Tensor:
        self.passes += 1
        return (batch.targets.double() * batch.weights.double()).sum()

    def sum(self, values: list[float]) -> list[float]:
        return values


def validator(tmp_path: Path, data: Path, **policy: Any) -> Validator:
    recipe = tiny_recipe(tmp_path, data, validation={"max_tokens": 900, **policy})
    return Validator(recipe, load_manifest(data))


def test_each_source_and_their_sum(tmp_path: Path, data: Path) -> None:
    """A fifth of each source, and nats / ln 2 / bytes by hand."""
    found = validator(tmp_path, data)(Engine())  # type: ignore[arg-type]
    manifest = load_manifest(data)
    streams = [TokenStream(source.prefixes, source.name) for source in manifest.validation[:2]]
    share = 900 / sum(stream.length - 1 for stream in streams)
    nats, sizes = [], []
    for stream in streams:
        targets = stream.read(1, math.ceil((stream.length - 1) * share))
        nats.append(float(targets.sum()))
        sizes.append(float(manifest.vocab.token_bytes[targets].sum()))
    assert found["val/bits_per_byte/one"] == pytest.approx(nats[0] / math.log(2) / sizes[0])
    assert found["val/bits_per_byte/other"] == pytest.approx(nats[1] / math.log(2) / sizes[1])
    assert found["val/bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / sum(sizes))
    assert not any(name.endswith("/empty") for name in found)


def test_without_sources_the_rest_is_the_same_in_fewer_passes(tmp_path: Path, data: Path) -> None:
    engines = Engine(), Engine()
    by_source = validator(tmp_path, data)(engines[0])  # type: ignore[arg-type]
    whole = validator(tmp_path, data, by_source=False)(engines[1])  # type: ignore[arg-type]
    assert {name: by_source[name] for name in whole} == pytest.approx(whole)
    assert set(by_source) - set(whole) == {"val/bits_per_byte/one", "val/bits_per_byte/other"}
    assert engines[1].passes <= engines[0].passes <= engines[1].passes + 2


def test_ranks_make_as_many_passes_and_give_parts_of_the_sums(tmp_path: Path, data: Path) -> None:
    """With three ranks some have no window of a source: they pass empty rows."""
    engines = [Engine(rank, 3) for rank in range(3)]
    sums: list[list[list[float]]] = []
    for engine in engines:
        own: list[list[float]] = []
        engine.sum = lambda values, own=own: own.append(values) or values  # type: ignore[method-assign, misc]
        validator(tmp_path, data)(engine)  # type: ignore[arg-type]
        sums.append(own)
    assert len({engine.passes for engine in engines}) == 1
    alone = Engine()
    whole: list[list[float]] = []
    alone.sum = lambda values: whole.append(values) or values  # type: ignore[method-assign]
    validator(tmp_path, data)(alone)  # type: ignore[arg-type]
    assert np.array(sums).sum(axis=0) == pytest.approx(np.array(whole))


def test_frequencies_of_tokens_by_hand(tmp_path: Path, data: Path) -> None:
    found = validator(tmp_path, data, max_tokens=10**6)(Engine())["val/unigram_bits_per_byte"]  # type: ignore[arg-type]
    manifest = load_manifest(data)
    streams = [TokenStream(source.prefixes, source.name) for source in manifest.train]
    tokens = np.concatenate([stream.read(0, stream.length) for stream in streams])
    targets = np.concatenate([stream.read(1, stream.length - 1) for stream in streams])
    size = manifest.vocab.size
    counts = {token: 1 + int((tokens == token).sum()) for token in set(targets.tolist())}
    bits = sum(math.log2((len(tokens) + size) / counts[token]) for token in targets.tolist())
    assert found == pytest.approx(bits / float(manifest.vocab.token_bytes[targets].sum()))

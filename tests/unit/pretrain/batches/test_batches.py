"""Batches: a pure function of (recipe, step), whoever asks and in whatever portions."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.tokens.shards import TokenStream, load_manifest
from pretrain.batches.source import Batch, BatchSource, prefetched
from tests.parts.training_run import ROOT, prepare_data, tiny_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_data(tmp_path_factory.mktemp("data"), {"a": 9_000, "b": 3_000})


def source(directory: Path, data: Path, **train: object) -> BatchSource:
    recipe = tiny_recipe(directory, data, **train)
    return BatchSource(recipe, load_manifest(recipe.data_directory))


def test_digests_do_not_depend_on_ranks_micro_batches_or_restarts(tmp_path: Path, data: Path) -> None:
    batches = source(tmp_path, data)
    expected = {step: batches.digest(step) for step in range(60)}
    assert len(set(expected.values())) == 60
    for ranks in (2, 4):
        assert {step: batches.digest(step, ranks) for step in range(60)} == expected
    for micro in (1, 2, 4, 8):
        assert source(tmp_path, data, micro_batch_size=micro).digest(37) == expected[37]
    assert source(tmp_path, data).digest(59) == expected[59], "a fresh object that starts in the middle"


@pytest.mark.slow
def test_digests_do_not_depend_on_the_process(tmp_path: Path, data: Path) -> None:
    recipe = tiny_recipe(tmp_path, data)
    code = (
        "import sys; from configs.schema.recipe import load; from data_prep.tokens.shards import load_manifest;"
        "from pretrain.batches.source import BatchSource; r = load(sys.argv[1]);"
        "print(BatchSource(r, load_manifest(r.data_directory)).digest(5))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "recipe.yaml")]
    environment = {"PYTHONHASHSEED": "77", "PATH": ""}
    printed = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120
    )
    assert printed.stdout.strip() == BatchSource(recipe, load_manifest(recipe.data_directory)).digest(5)


def test_an_epoch_is_every_window_once_and_targets_follow_tokens(tmp_path: Path, data: Path) -> None:
    batches = source(tmp_path, data)
    seen: list[tuple[int, ...]] = []
    for step in range(batches.windows // 8):
        batch = batches.batch(step)
        assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
        assert batch.fresh
        seen += [(*row.tolist(), int(last)) for row, last in zip(batch.tokens, batch.targets[:, -1], strict=True)]
    assert not batches.batch(batches.windows // 8 + 1).fresh
    expected = []
    for part in load_manifest(data).train:
        stream = TokenStream(part.prefixes).read(0, TokenStream(part.prefixes).length)
        expected += [tuple(stream[w * 32 : w * 32 + 33].tolist()) for w in range((len(stream) - 1) // 32)]
    assert len(expected) == batches.windows
    left = sorted(expected)
    for window in seen:
        left.remove(window)
    assert len(left) == batches.windows % 8


def test_bytes_of_targets(tmp_path: Path, data: Path) -> None:
    batch = source(tmp_path, data).batch(3)
    end_of_document = load_manifest(data).eod_id
    assert batch.target_bytes == int((batch.targets != end_of_document).sum())  # a byte-level vocabulary


def test_documents_of_a_step_are_those_of_its_tokens(tmp_path: Path, data: Path) -> None:
    batches = source(tmp_path, data)
    rows = batches.documents(4)
    assert len(rows) == 8
    for row, spans in zip(batches.batch(4).tokens, rows, strict=True):
        assert sum(span.tokens for span in spans) == 33
        assert all(later.offset_in_document == 0 for _, later in pairwise(spans))
        ends = [position for position, token in enumerate(row.tolist()) if token == load_manifest(data).eod_id]
        assert ends == [position for position in np.cumsum([s.tokens for s in spans][:-1]) - 1 if position < 32]


def test_reading_ahead_gives_the_same_batches_and_passes_errors_on(tmp_path: Path, data: Path) -> None:
    batches = source(tmp_path, data)
    with prefetched(batches, range(5, 25), 1, 2, torch.device("cpu")) as ahead:
        for step, batch in zip(range(5, 25), ahead, strict=True):
            assert torch.equal(batch.tokens, batches.batch(step, 1, 2).tokens)

    class Broken:
        def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
            raise ValueError(f"step {step} cannot be read")

    with (
        pytest.raises(ValueError, match="step 7 cannot be read"),
        prefetched(Broken(), range(7, 9), 0, 1, torch.device("cpu")) as ahead,
    ):
        next(ahead)


def test_tokens_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    data = prepare_data(tmp_path / "data")
    shard = data / "tiny" / "00000.bin"
    shard.write_bytes(b"\xff\x7f" * (shard.stat().st_size // 2))
    batches = source(tmp_path, data)
    with pytest.raises(ValueError, match=r"token id 32767 .* another tokenizer"):
        for step in range(batches.windows // 8):
            batches.batch(step)


def test_a_trillion_tokens_start_at_step_a_million_at_once(tmp_path: Path) -> None:
    data = prepare_data(tmp_path / "data")
    manifest = json.loads((data / "manifest.json").read_text())
    for shard in manifest["splits"]["train"][0]["shards"]:
        file = data / f"{shard['prefix']}.bin"
        shard["bin_bytes"] = 10**12  # sparse: two files of half a trillion uint16 tokens each take no space
        with file.open("r+b") as stream:
            stream.truncate(shard["bin_bytes"])
    (data / "manifest.json").write_text(json.dumps(manifest))
    recipe = tiny_recipe(tmp_path, data, global_batch_size=64)
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    batches = BatchSource(recipe, load_manifest(data))
    batch = batches.batch(1_000_000)
    assert time.monotonic() - start < 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 50_000  # kB
    assert batches.windows > 3e10 and batch.tokens.shape == (64, 32)

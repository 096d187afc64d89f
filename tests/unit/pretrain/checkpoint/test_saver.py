"""Checkpoints written beside training: the same files, what they keep, and what happens when they cannot be written."""

from __future__ import annotations

import os
import resource
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.schema.recipe import Recipe
from configs.schema.train import CheckpointPolicy, Train
from data_prep.tokens.shards import load_manifest
from data_prep.tokens.vocab import Vocab
from pretrain.checkpoint import saver
from pretrain.checkpoint.manifest import read_info, step_directories
from pretrain.checkpoint.retention import expired
from pretrain.parallel.ranks import Ranks
from pretrain.session import run
from tests.parts.training_run import as_ranks, metric_lines, prepare_data, tiny_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_data(tmp_path_factory.mktemp("data"))


def trained(directory: Path, data: Path, **checkpoint: Any) -> Recipe:
    directory.mkdir(exist_ok=True)
    recipe = tiny_recipe(directory, data, checkpoint=checkpoint, validation={"every": 5, "max_tokens": 200})
    assert run(recipe)
    return recipe


def names(recipe: Recipe) -> list[str]:
    return [directory.name for directory in step_directories(recipe.run_directory)]


@pytest.mark.slow
def test_beside_training_the_same_files_are_written(tmp_path: Path, data: Path) -> None:
    """While the next steps change weights, moments and sums."""
    one = trained(tmp_path / "one", data, every=3, keep=9, asynchronous=True)
    other = trained(tmp_path / "other", data, every=3, keep=9, asynchronous=False)
    assert names(one) == names(other) and len(names(one)) == 7
    for name in names(one):
        infos = [read_info(recipe.run_directory / "checkpoints" / name) for recipe in (one, other)]
        tensors = [
            {file: identity for file, identity in info.files.items() if file.endswith(".safetensors")} for info in infos
        ]
        assert tensors[0] == tensors[1] and len(tensors[0]) == 2
        assert infos[0].state == infos[1].state


def test_training_goes_on_while_a_save_is_written_and_never_two_at_once(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer of step 5 holds on until step 9 is logged: it would wait for ever if training waited for it."""
    write, writing, most = saver.write_pieces, [0], [0]

    def slow(tensors: Any, directory: Path, ranks: Ranks) -> Any:
        writing[0] += 1
        most[0] = max(most[0], writing[0])
        if "step_00000005" in directory.name:
            assert threading.current_thread() is not threading.main_thread()
            deadline = threading.Event()
            while max(metric_lines(tmp_path / "run", "train/loss"), default=0) < 9:
                assert not deadline.wait(0.01)
        written = write(tensors, directory, ranks)
        writing[0] -= 1
        return written

    monkeypatch.setattr(saver, "write_pieces", slow)
    recipe = trained(tmp_path, data, every=5, keep=9)
    assert len(names(recipe)) == 4 and most[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_disk_that_is_full_for_a_while_costs_one_checkpoint(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asynchronous: bool
) -> None:
    """Files are limited to a size that no piece fits, at step 10 only."""
    write = saver.write_pieces

    def limited(tensors: Any, directory: Path, ranks: Ranks) -> Any:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if "step_00000010" in directory.name:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        try:
            return write(tensors, directory, ranks)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(saver, "write_pieces", limited)
    recipe = trained(tmp_path, data, every=5, keep=9, asynchronous=asynchronous)
    assert names(recipe) == ["step_00000020", "step_00000015", "step_00000005"]
    said = capsys.readouterr().err
    assert "warning: the checkpoint of step 10 could not be written to" in said
    assert f"{tmp_path / 'run' / 'checkpoints'} (" in said and "MB free" in said and "File too large" in said
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_the_last_checkpoint_must_be_written(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, 20, OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        trained(tmp_path, data, every=5)
    assert step_directories(tmp_path / "run")[0].name == "step_00000015"


def test_a_fault_of_the_writer_ends_training_at_the_next_step(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, 5, KeyError("a bug"))
    with pytest.raises(KeyError, match="a bug"):
        trained(tmp_path, data, every=5)
    assert max(metric_lines(tmp_path / "run", "train/loss")) < 20


def fail_at(monkeypatch: pytest.MonkeyPatch, step: int, error: Exception) -> None:
    write = saver.write_pieces

    def failing(tensors: Any, directory: Path, ranks: Ranks) -> Any:
        if f"step_{step:08d}" in directory.name:
            raise error
        return write(tensors, directory, ranks)

    monkeypatch.setattr(saver, "write_pieces", failing)


def test_when_one_rank_cannot_write_no_rank_has_a_checkpoint(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tmp_path, data)
    manifest = load_manifest(recipe.data_directory)

    def write(tensors: dict[str, dict[str, Tensor]], directory: Path, ranks: Ranks) -> dict[str, Any]:
        if ranks.rank == 1:
            raise OSError(28, "No space left on device")
        return {}

    def save(ranks: Ranks, gather: Callable[[Any], list[Any]]) -> str:
        try:
            saver.commit_checkpoint(saver.Snapshot(1, 1, {}, {}, {}), recipe, manifest, ranks, gather)
        except OSError as error:
            return str(error)
        return "saved"

    monkeypatch.setattr(saver, "write_pieces", write)
    assert as_ranks(2, save) == ["[Errno 28] No space left on device"] * 2
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_save_reads_no_tokenizer(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fingerprint was compared when the data was opened, and stands in the manifest."""
    recipe, manifest = tiny_recipe(tmp_path, data), load_manifest(data)
    expected = Vocab.load(manifest.tokenizer).fingerprint
    monkeypatch.setattr(Vocab, "load", lambda *_: pytest.fail("a tokenizer was read"))
    snapshot = saver.Snapshot(1, 1, {}, {}, {})
    directory = saver.commit_checkpoint(snapshot, recipe, manifest, Ranks(0, 1, 0, 1), lambda value: [value])
    assert read_info(directory).tokenizer_fingerprint == manifest.tokenizer_fingerprint == expected


def test_a_checkpoint_takes_over_content_and_no_modes(tmp_path: Path, data: Path) -> None:
    """Who may read it is what the umask says, whoever prepared the data."""
    shutil.copytree(data, tmp_path / "data")
    recipe, manifest = tiny_recipe(tmp_path, tmp_path / "data"), load_manifest(tmp_path / "data")
    for path in (manifest.tokenizer, *manifest.tokenizer.iterdir()):
        path.chmod(0o700)
    before = os.umask(0o027)
    try:
        snapshot = saver.Snapshot(1, 1, {}, {}, {})
        directory = saver.commit_checkpoint(snapshot, recipe, manifest, Ranks(0, 1, 0, 1), lambda value: [value])
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (directory, *directory.rglob("*"))}
    assert modes == {name: oct(0o750 if "." not in name else 0o640) for name in modes}


def test_the_vocabulary_of_prepared_data_is_read_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, reads = load_manifest(data), list[object]()
    load = Vocab.load
    monkeypatch.setattr(Vocab, "load", lambda path: (reads.append(path), load(path))[1])
    assert manifest.vocab is manifest.vocab and manifest.vocab.token_bytes is manifest.vocab.token_bytes
    assert len(reads) == 1


# ------------------------------------------------------------------------------------------------------------ retention
SCORES: dict[int, float | None] = {10: 3.0, 20: 2.0, 30: 2.5, 40: None, 50: 2.0, 60: 2.7}


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"keep": 2}, {50, 60}),
        ({"keep": 9}, set(SCORES)),
        ({"keep": 1, "keep_every": 20}, {20, 40, 60}),
        ({"keep": 1, "keep_best": 1}, {50, 60}),
        ({"keep": 1, "keep_best": 3}, {20, 30, 50, 60}),
        ({"keep": 1, "keep_best": 1, "keep_every": 30}, {30, 50, 60}),
    ],
)
def test_what_stays(settings: dict[str, int], kept: set[int]) -> None:
    assert set(SCORES) - expired(SCORES, CheckpointPolicy(**settings)) == kept


def test_a_run_keeps_what_it_is_asked_to(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best by validation loss is step 10's, as far as this validator says."""
    from pretrain.objectives import language_modelling

    class Validator(language_modelling.Validator):
        def __call__(self, engine: Any) -> dict[str, float]:
            return {"val/loss": 1.0 if engine.state.updates() == 10 else 2.0}

    monkeypatch.setattr(language_modelling, "Validator", Validator)
    recipe = trained(tmp_path, data, every=5, keep=1, keep_best=1)
    assert names(recipe) == ["step_00000020", "step_00000010"]
    scores = [read_info(directory).state["validation_loss"] for directory in step_directories(recipe.run_directory)]
    assert scores == [2.0, 1.0]
    assert torch.isfinite(torch.tensor(scores)).all()


def test_best_needs_a_validation_at_every_checkpoint() -> None:
    with pytest.raises(ValueError, match="keep_best needs a validation at every checkpoint"):
        Train(steps=1, checkpoint=CheckpointPolicy(every=5, keep_best=1))

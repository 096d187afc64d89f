"""Committed checkpoints: what counts as whole, which one is taken, what is kept, and what they are refused for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from configs.recipe import Recipe
from pretrain import saving
from pretrain.checkpoint import is_finished, latest, load_weights, read_info, step_directories
from pretrain.session import run
from tests.training_run import metric_lines, prepare_data, tiny_recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    directory = tmp_path_factory.mktemp("trained")
    data = prepare_data(directory / "data")
    recipe = tiny_recipe(directory, data, checkpoint={"every": 5, "keep": 3}, zero={"stage": 1}, precision="bf16")
    assert run(recipe)
    return recipe


@pytest.fixture
def copy(trained: Recipe, tmp_path: Path) -> Recipe:
    """A run directory of its own to do harm to."""
    shutil.copytree(trained.run_directory, tmp_path / "run")
    return trained.model_copy(update={"out": str(tmp_path / "run")})


def test_the_newest_are_kept_and_latest_names_the_last(trained: Recipe) -> None:
    names = [directory.name for directory in step_directories(trained.run_directory)]
    assert names == ["step_00000020", "step_00000015", "step_00000010"]
    assert (trained.run_directory / "checkpoints" / "latest").read_text() == "step_00000020\n"
    info = read_info(trained.run_directory / "checkpoints" / names[0])
    assert info.step == 20 and info.recipe == trained and (info.tokenizer / "tokenizer.json").is_file()
    assert not list(trained.run_directory.rglob("*.pt")) and not list(trained.run_directory.rglob("*.pkl"))


def test_weights_are_the_fp32_ones_and_readable_by_safetensors_alone(trained: Recipe) -> None:
    directory = step_directories(trained.run_directory)[0]
    model = load_weights(directory)
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}
    values = torch.cat([p.flatten() for p in model.parameters()])
    assert (values != values.bfloat16().float()).float().mean() > 0.9, "master weights, not the rounded ones"
    with safe_open(directory / "weights-00000-of-00001.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("embed.weight@0"), model.embed.weight.detach().flatten())


@pytest.mark.parametrize("harm", ["truncate", "remove", "flip", "manifest"])
def test_a_damaged_newest_gives_way_to_the_one_before(
    copy: Recipe, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    newest, before, _ = step_directories(copy.run_directory)
    file = next(newest.glob("weights-*"))
    content = file.read_bytes()
    if harm == "truncate":
        file.write_bytes(content[:-1])
    elif harm == "remove":
        file.unlink()
    elif harm == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        (newest / "manifest.json").write_text('{"schema"')
    assert latest(copy.run_directory, hashes=True) == before
    assert "is damaged" in capsys.readouterr().err
    losses = metric_lines(copy.run_directory, "train/loss")
    assert run(copy), "goes on from step 15"
    assert metric_lines(copy.run_directory, "train/loss") == losses
    assert latest(copy.run_directory, hashes=True) == newest


def test_finished_means_these_steps_of_this_model_on_this_data(copy: Recipe) -> None:
    assert is_finished(copy)
    longer = copy.model_copy(update={"train": copy.train.model_copy(update={"steps": 21})})
    assert not is_finished(longer)
    other = copy.model_copy(update={"model": copy.model.model_copy(update={"dropout": 0.5})})
    assert not is_finished(other)
    shutil.rmtree(copy.run_directory / "checkpoints")
    assert not is_finished(copy)


def test_older_checkpoints_stay_when_the_new_one_cannot_be_written(
    copy: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "_replace", full)
    before = step_directories(copy.run_directory)
    longer = copy.model_copy(update={"train": copy.train.model_copy(update={"steps": 22})})
    with pytest.raises(OSError, match="No space left"):
        run(longer)
    assert step_directories(copy.run_directory) == before
    assert not list((copy.run_directory / "checkpoints").glob(".*"))


def test_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a checkpoint"):
        load_weights(tmp_path)

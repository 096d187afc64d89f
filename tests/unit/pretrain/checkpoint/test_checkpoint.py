"""Committed checkpoints: what counts as whole, which one is taken, what is kept, and what they are refused for."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from configs.common.files import fingerprint, read_json, write_json
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import load_manifest
from pretrain.checkpoint import saver
from pretrain.checkpoint.compatible import check_belongs, check_finished, is_finished
from pretrain.checkpoint.load_weights import load_weights
from pretrain.checkpoint.manifest import (
    DamagedCheckpoint,
    newest,
    read_info,
    step_directories,
)
from pretrain.checkpoint.resume import newest_checkpoint
from pretrain.session import run
from tests.parts.training_run import as_ranks, metric_lines, prepare_data, tiny_recipe


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


def do_harm(directory: Path, harm: str) -> None:
    file = next(directory.glob("weights-*"))
    content = file.read_bytes()
    if harm == "truncate":
        file.write_bytes(content[:-1])
    elif harm == "remove":
        file.unlink()
    elif harm == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "manifest":
        (directory / "manifest.json").write_text('{"schema"')
    else:
        (directory / "manifest.json").unlink()


REASONS = {
    "truncate": "weights-00000-of-00001.safetensors has",
    "remove": "weights-00000-of-00001.safetensors is missing",
    "flip": "weights-00000-of-00001.safetensors: checksum mismatch",
    "manifest": "manifest.json is not valid JSON",
    "no manifest": "it has no manifest.json",
}


@pytest.mark.parametrize("harm", REASONS)
def test_a_damaged_newest_is_set_aside_for_the_one_before(
    copy: Recipe, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    last, before, _ = step_directories(copy.run_directory)
    do_harm(last, harm)
    found = newest(copy.run_directory, hashes=True)
    assert found is not None and found.directory == before, "looking alone renames nothing"
    losses = metric_lines(copy.run_directory, "train/loss")
    capsys.readouterr()
    assert check_finished(copy) == (harm == "flip"), "without hashes sizes are compared"
    assert run(copy), "goes on from step 15"
    said = capsys.readouterr().err
    assert REASONS[harm] in said and f"it is now {last.name}.damaged" in said
    assert said.count("is damaged") == 1, "it is asked for several times, and said once"
    assert last.with_name(f"{last.name}.damaged").is_dir()
    assert metric_lines(copy.run_directory, "train/loss") == losses
    found = newest(copy.run_directory, hashes=True)
    assert found is not None and found.directory == last


def test_all_damaged_is_for_a_person_to_decide_and_stays_so(copy: Recipe) -> None:
    for directory in step_directories(copy.run_directory):
        do_harm(directory, "flip")
    for _ in range(2):
        with pytest.raises(ValueError, match="holds only damaged checkpoints"):
            run(copy)
    assert len(list((copy.run_directory / "checkpoints").glob("step_*.damaged"))) == 3


def test_any_changed_byte_of_a_manifest_is_seen(copy: Recipe) -> None:
    directory = step_directories(copy.run_directory)[0]
    file = directory / "manifest.json"
    content = file.read_bytes()
    for place in range(0, len(content), 7):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with suppress(ValueError):
            if read_json(file) == json.loads(content):
                continue  # the last digit of a number, which says the same without it
        with pytest.raises(DamagedCheckpoint):
            read_info(directory)


def test_a_checkpoint_of_a_later_version_is_no_damage(copy: Recipe) -> None:
    directory = step_directories(copy.run_directory)[0]
    content = {key: value for key, value in read_json(directory / "manifest.json").items() if key != "seal"}
    content["schema"] = 2
    write_json(directory / "manifest.json", {**content, "seal": fingerprint(content)})
    with pytest.raises(ValueError, match="version 2") as caught:
        run(copy)
    assert not isinstance(caught.value, DamagedCheckpoint) and directory.is_dir()


def test_one_rank_sees_the_damage_and_all_move(copy: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    """Three ranks as threads; the file harmed is in the share of the second."""
    last, before, _ = step_directories(copy.run_directory)
    names = sorted(read_info(last).files)
    file = last / names[1]
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found = as_ranks(3, lambda ranks, gather: newest_checkpoint(copy, ranks, gather, None))
    assert [info.directory for info in found] == [before] * 3
    assert f"rank 1: {names[1]}: checksum mismatch" in capsys.readouterr().err


def test_changes_are_refused_with_both_values_unless_accepted(copy: Recipe) -> None:
    longer = {"steps": 22, "global_batch_size": 4}
    changed = copy.model_copy(update={"train": copy.train.model_copy(update=longer)})
    with pytest.raises(
        ValueError, match=r"global_batch_size = 8, but now it is 4.*accept_changed=\[global_batch_size\]"
    ):
        run(changed)
    policy = copy.train.checkpoint.model_copy(update={"accept_changed": ["global_batch_size", "data"]})
    info, data = read_info(step_directories(copy.run_directory)[0]), load_manifest(copy.data_directory)
    other = replace(data, fingerprint="other")
    with pytest.raises(ValueError, match=f"data's fingerprint = {info.data_fingerprint}, but now it is other"):
        check_belongs(info, copy, other)
    accepting = copy.model_copy(update={"train": copy.train.model_copy(update={**longer, "checkpoint": policy})})
    check_belongs(info, accepting, other)
    assert run(accepting)
    wider = copy.model_copy(update={"model": copy.model.model_copy(update={"hidden_size": 64})})
    with pytest.raises(ValueError, match=r"model\.hidden_size = 32, but now it is 64"):
        check_belongs(info, wider, data)
    with pytest.raises(ValueError, match="tokenizer's fingerprint = other"):
        check_belongs(replace(info, tokenizer_fingerprint="other"), copy, data)


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

    monkeypatch.setattr(saver, "_replace", full)
    before = step_directories(copy.run_directory)
    longer = copy.model_copy(update={"train": copy.train.model_copy(update={"steps": 22})})
    with pytest.raises(OSError, match="No space left"):
        run(longer)
    assert step_directories(copy.run_directory) == before
    assert not list((copy.run_directory / "checkpoints").glob(".*"))


def test_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a checkpoint"):
        load_weights(tmp_path)

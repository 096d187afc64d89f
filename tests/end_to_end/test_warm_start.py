"""`train.init_from`: a run, a checkpoint and a Hugging Face directory give the same start; context extension."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from configs.schema.recipe import Recipe, load
from pretrain.checkpoint.load_weights import load_weights
from pretrain.checkpoint.manifest import newest
from pretrain.interchange.huggingface_export import export_directory
from pretrain.session import run
from tests.parts.training_run import metric_lines, prepare_data, write_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_data(tmp_path_factory.mktemp("data"))


def recipe(directory: Path, data: Path, model: dict[str, Any], **train: Any) -> Recipe:
    directory.mkdir(exist_ok=True)
    file = write_recipe(directory / "recipe.yaml", data, **train)
    content = yaml.safe_load(file.read_text())
    content["model"] |= model
    file.write_text(yaml.safe_dump(content))
    return load(file)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    first = recipe(tmp_path_factory.mktemp("first"), data, {}, validation={"every": 20})
    assert run(first)
    return first


# An export has no rows that pad the embedding, and the softmax goes over them too.
LONG = {"vocab_multiple": 1, "context_length": 64, "rope_scaling": {"kind": "ntk", "factor": 2.0}}


def test_all_three_give_the_same_start(trained: Recipe, data: Path, tmp_path: Path) -> None:
    checkpoint = newest(trained.run_directory)
    assert checkpoint is not None
    exported = export_directory(load_weights(checkpoint), data / "tokenizer", tmp_path / "exported")
    losses = []
    for number, path in enumerate([trained.run_directory, checkpoint.directory, exported]):
        longer = recipe(tmp_path / str(number), data, LONG, steps=3, init_from=str(path), optimizer={"lr": 1e-4})
        assert run(longer)
        losses.append(list(metric_lines(longer.run_directory, "train/loss").values()))
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(losses[2], abs=1e-6)
    before = metric_lines(trained.run_directory, "val/loss")[20]
    assert abs(losses[0][0] - before) < 0.35 < math.log(257) - before, "it goes on where training had ended"
    first = load_weights(checkpoint)
    last = load_weights(newest(tmp_path / "0" / "run") or tmp_path)
    moved = (first.blocks[0].mlp.up.weight - last.blocks[0].mlp.up.weight).abs().max()  # type: ignore[union-attr]
    assert torch.is_tensor(moved) and 0 < moved < 1e-3


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"hidden_size": 48, "num_layers": 3}, ["model.num_layers is 2 there and 3 here", "hidden_size is 32 there"]),
        ({"tied_embeddings": True}, ["model.tied_embeddings is False there and True here"]),
    ],
)
def test_another_model_is_refused(
    trained: Recipe, data: Path, tmp_path: Path, model: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ValueError, match="has another model") as error:
        run(recipe(tmp_path, data, model, steps=1, init_from=str(trained.run_directory)))
    assert all(word in str(error.value) for word in words)


def test_a_path_without_weights_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has neither config\.json"):
        run(recipe(tmp_path / "a", data, {}, steps=1, init_from=str(tmp_path)))

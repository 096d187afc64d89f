"""Starts training from existing weights: for fine-tuning, or for a longer context."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from configs.schema.model import Model
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest
from data_prep.tokens.vocab import Vocab
from pretrain.checkpoint.load_weights import open_weights
from pretrain.checkpoint.manifest import DIRECTORY, MANIFEST, newest, read_info
from pretrain.interchange.huggingface_config import CONFIG_NAME
from pretrain.interchange.huggingface_import import open_directory
from pretrain.sizes.shapes import parameter_shapes

Read = Callable[[str], Tensor]

# What may differ, because no weight depends on it; and what stands for a default, compared by what it comes to.
_FREE = {"family", "context_length", "rope_scaling", "rope_theta", "dropout", "init_std", "zero_init"}
_RESOLVED = {"num_kv_heads": "kv_heads", "head_dim": "head_width", "intermediate_size": "mlp_width"}
_VOCABULARY = {"vocab_size", "vocab_multiple"}


def weights_to_start_from(recipe: Recipe, data: DataManifest, initial: Read) -> Read:
    """Returns a function that reads a weight of `train.init_from`, whole and in fp32, when it is asked for.

    Rows that only pad the embedding come from `initial`, because the padding may differ.

    Raises:
        ValueError: when the path holds no weights, or the model or tokenizer is another one; names what differs.
    """
    assert recipe.train.init_from
    path = Path(recipe.train.init_from)
    config, tokenizer, read = _opened(path)
    if different := _differences(config, recipe.model):
        raise ValueError(
            f"train.init_from {path} has another model: {'; '.join(different)}; make the recipe's the same"
        )
    if Vocab.load(tokenizer).tokenizer.get_vocab() != data.vocab.tokenizer.get_vocab():
        raise ValueError(
            f"train.init_from {path} has other tokens than the data; prepare the data with "
            f"data.tokenizer={{kind: file, path: {tokenizer}}}"
        )

    def value(name: str) -> Tensor:
        found = read(name)
        if name not in ("embed.weight", "lm_head.weight"):
            return found
        whole, known = initial(name), min(data.vocab.size, len(found))  # special tokens may have no row (see `Vocab`)
        whole[:known] = found[:known]
        return whole

    return value


def _opened(path: Path) -> tuple[Model, Path, Read]:
    if (path / CONFIG_NAME).is_file():
        return open_directory(path)
    try:
        info = read_info(path) if (path / MANIFEST).is_file() and not (path / DIRECTORY).is_dir() else newest(path)
        if info is None:
            raise ValueError(
                f"{path} has neither {CONFIG_NAME} (a Hugging Face directory), {MANIFEST} (a checkpoint) "
                f"nor {DIRECTORY}/ with a whole checkpoint (a run); give a path that has"
            )
        rows, weights = open_weights(info)
    except ValueError as error:
        raise ValueError(f"train.init_from: {error}") from error
    shapes = dict(parameter_shapes(info.recipe.model, rows))
    return info.recipe.model, info.tokenizer, lambda name: weights.whole(name, shapes[name])


def _differences(theirs: Model, ours: Model) -> list[str]:
    def of(model: Model, key: str) -> Any:
        return getattr(model, _RESOLVED.get(key, key))

    names = [key for key in Model.model_fields if key not in _FREE | _VOCABULARY]
    found = [f"model.{key} is {of(theirs, key)} there and {of(ours, key)} here" for key in names]
    found = [text for key, text in zip(names, found, strict=True) if of(theirs, key) != of(ours, key)]
    if ours.position == "learned" and theirs.context_length != ours.context_length:
        found.append(
            f"learned positions are {theirs.context_length} there and {ours.context_length} here (model.context_length)"
        )
    return found

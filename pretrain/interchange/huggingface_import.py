"""Imports Hugging Face directories: config.json, safetensors, tokenizer.json. Executes nothing and checks everything.

Three architectures are read: GPT2LMHeadModel, LlamaForCausalLM, Qwen3ForCausalLM; logits equal to `transformers` for
each (tests/reference). `pretrain/interchange/huggingface_export.py` writes such directories.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import safe_open
from torch import Tensor

from configs.common.files import read_object
from configs.schema.model import Model
from data_prep.tokens.vocab import TOKENIZER_NAME
from pretrain.interchange.huggingface_config import CONFIG_NAME, Settings
from pretrain.interchange.huggingface_weights import ARCHITECTURES, Weight
from pretrain.model.transformer import Transformer
from pretrain.sizes.shapes import check_context, parameter_shapes

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
# Buffers of old versions: causal masks, rotary frequencies.
_REDUNDANT = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
_HEAD = "lm_head.weight"
_COMPARED_ROWS = 4096


class Stored(NamedTuple):
    """A weight in a file: its shape, which the library has compared with the file's size, and how to read it."""

    shape: tuple[int, ...]
    file: Path
    read: Callable[[], Tensor]
    rows: Callable[[int, int], Tensor]


def import_directory(path: Path) -> tuple[Transformer, Path]:
    """Reads a Hugging Face directory: the model (fp32, CPU, eval mode) and the path of its tokenizer.json.

    Raises:
        ValueError: as `open_directory`.
    """
    config, tokenizer, read = open_directory(path)
    assert config.vocab_size
    with torch.device("meta"):
        model = Transformer(config, config.vocab_size)
    model.materialize("cpu").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(read(name))
    return model, tokenizer


def open_directory(path: Path) -> tuple[Model, Path, Callable[[str], Tensor]]:
    """A Hugging Face directory's settings, its tokenizer.json, and a function that reads a weight by our name, fp32.

    One `model.safetensors`, or shards with an index. What config.json says is compared with the shapes in the files
    before memory is asked for; no weight is read before it is asked for. As in `transformers` 5, a head of its own is
    used whatever `tie_word_embeddings` says.

    Raises:
        ValueError: when a file is missing or damaged, the weights are only there as pickle, the architecture or one of
            its settings is not ours, or a shape is not what config.json says; names the file and the key.
    """
    path = Path(path)
    for file in (CONFIG_NAME, TOKENIZER_NAME):
        if not (path / file).is_file():
            raise ValueError(f"{path} has no {file}; give a Hugging Face model directory with one")
    source = Settings(path / CONFIG_NAME, read_object(path / CONFIG_NAME))
    names = source.values.get("architectures")
    name = names[0] if isinstance(names, list) and names else names
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ValueError(
            f"{source.file}: architecture {name or 'none'} cannot be imported; known: {', '.join(ARCHITECTURES)}"
        )
    config = _settings(source, name)
    where = _open_weights(path)
    config = _with_its_head(config, where, ARCHITECTURES[name].weights(config))
    weights = _compare(path, config, where, name)
    return config, path / TOKENIZER_NAME, partial(_read, where, weights)


def _settings(source: Settings, name: str) -> Model:
    try:
        return Model(**ARCHITECTURES[name].read(source), vocab_size=source.whole("vocab_size"))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}".removeprefix(": ") for item in error.errors()]
        text = "; ".join(problems).replace("Value error, ", "")
        raise ValueError(f"{source.file}: {text} (by the names of our recipes)") from None


def _with_its_head(config: Model, where: dict[str, Stored], weights: Any) -> Model:
    """The settings with `tied_embeddings` as the files have it: a head of other values than the embedding is used."""
    if not config.tied_embeddings or _HEAD not in where:
        return config
    embedding = where.get(next(iter(weights)).theirs[0])
    return (
        config
        if embedding and _equal(where[_HEAD], embedding)
        else config.model_copy(update={"tied_embeddings": False})
    )


def _equal(a: Stored, b: Stored) -> bool:
    """Whether two stored matrices have the same values; reads some rows at a time."""
    if a.shape != b.shape or len(a.shape) != 2:
        return False
    starts = range(0, a.shape[0], _COMPARED_ROWS)
    parts = ((start, min(start + _COMPARED_ROWS, a.shape[0])) for start in starts)
    return all(torch.equal(a.rows(*part).float(), b.rows(*part).float()) for part in parts)


def _compare(path: Path, config: Model, where: dict[str, Stored], name: str) -> dict[str, Weight]:
    """The weights by our names, after comparing all names and shapes with what the files hold.

    Settings are followed one weight at a time, so that absurd ones end at the first weight that is missing.
    """
    weights: dict[str, Weight] = {}
    for weight in ARCHITECTURES[name].weights(config):
        if missing := [part for part in weight.theirs if part not in where]:
            raise ValueError(f"{path} lacks the weight {missing[0]}; it does not belong to this {CONFIG_NAME}")
        weights[weight.ours] = weight
    theirs = {part for weight in weights.values() for part in weight.theirs}
    redundant = (*_REDUNDANT, _HEAD) if config.tied_embeddings else _REDUNDANT
    if unknown := [part for part in where if part not in theirs and not part.endswith(redundant)]:
        raise ValueError(f"{path} has weights that this architecture does not use, such as {unknown[0]}")
    assert config.vocab_size
    numbers = 0
    for ours, shape in parameter_shapes(config, config.vocab_size):
        weight = weights[ours]
        for part, expected in zip(weight.theirs, _parts(weight, shape), strict=True):
            if where[part].shape != expected:
                raise ValueError(
                    f"{path}: {part} has shape {where[part].shape} where {CONFIG_NAME} asks for {expected}"
                )
        numbers += math.prod(shape)
    check_context(config, 4 * numbers, f"{path / CONFIG_NAME}: the context length")
    return weights


def _parts(weight: Weight, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The shapes on the other side of a weight that has this shape here."""
    if weight.transposed:
        return [shape[::-1]]
    return [(rows, *shape[1:]) for rows in weight.rows] if weight.rows else [shape]


def _read(where: dict[str, Stored], weights: dict[str, Weight], ours: str) -> Tensor:
    weight = weights[ours]
    parts = [where[name].read() for name in weight.theirs]
    value = torch.cat(parts) if len(parts) > 1 else parts[0]
    return (value.T if weight.transposed else value).float()


def _weight_files(path: Path) -> list[Path]:
    if (path / INDEX_NAME).is_file():
        places = read_object(path / INDEX_NAME).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise ValueError(f"{path / INDEX_NAME} lacks weight_map, which says what lies where; get the file again")
        # Only the last part of each name: an index cannot point outside its directory.
        return sorted({path / Path(name).name for name in places.values()})
    if (path / WEIGHTS_NAME).is_file():
        return [path / WEIGHTS_NAME]
    if pickles := sorted(file.name for file in path.iterdir() if file.suffix in {".bin", ".pt", ".pth", ".ckpt"}):
        raise ValueError(
            f"{path} has its weights only as pickle ({pickles[0]}), which can run code when read; "
            "get the safetensors version, or convert it with `save_pretrained` where you trust it"
        )
    raise ValueError(f"{path} has no {WEIGHTS_NAME} and no {INDEX_NAME}")


def _open_weights(path: Path) -> dict[str, Stored]:
    """Finds the weights in the files, by their names there; reads headers only."""
    where: dict[str, Stored] = {}
    for file in _weight_files(path):
        try:
            opened: Any = safe_open(file, framework="pt")
        except Exception as error:  # safetensors and the file system raise different ones for missing and damaged
            raise ValueError(f"{file} cannot be read as safetensors ({error}); get it again") from error
        for key in opened.keys():  # noqa: SIM118  (not a mapping)
            # The first GPT-2 files were saved without the prefix.
            name = f"transformer.{key}" if key.startswith(("h.", "wte.", "wpe.", "ln_f.")) else key
            piece = opened.get_slice(key)
            where[name] = Stored(tuple(piece.get_shape()), file, partial(opened.get_tensor, key), partial(_rows, piece))
    return where


def _rows(piece: Any, first: int, last: int) -> Tensor:
    rows: Tensor = piece[first:last]
    return rows

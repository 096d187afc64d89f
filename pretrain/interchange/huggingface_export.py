"""Exports Hugging Face directories: config.json, safetensors in shards, the tokenizer's files.

Three architectures cover the settings of the `model` section (`pretrain/interchange/exportable.py`). Written with
safetensors and json alone, one shard in memory at a time, from a checkpoint of any ZeRO stage as it lies there; logits
equal to `transformers` for each (tests/reference).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from configs.common.files import atomic_directory, read_object, write_json, write_text
from configs.schema.model import Model
from configs.schema.objectives import RewardModelling
from data_prep.tokens.chat_template import chat_configs
from data_prep.tokens.special_tokens import (
    GENERATION_CONFIG,
    IDS,
    SPECIAL_IDS,
    TOKENIZER_CONFIG,
    copy_companions,
)
from data_prep.tokens.vocab import TOKENIZER_NAME, Vocab
from pretrain.checkpoint.fragment_files import save_tensors
from pretrain.checkpoint.load_weights import open_weights
from pretrain.checkpoint.manifest import CheckpointInfo
from pretrain.interchange.exportable import architecture_of
from pretrain.interchange.huggingface_config import CONFIG_NAME
from pretrain.interchange.huggingface_import import INDEX_NAME, WEIGHTS_NAME
from pretrain.interchange.huggingface_weights import ARCHITECTURES, Weight
from pretrain.model.transformer import Transformer
from pretrain.sizes.shapes import parameter_shapes

# fp32 is the default: it is what was scored, so that the report's numbers are the export's.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEFAULT_SHARD_BYTES = 5_000_000_000
HEAD, _PROJECTION = "reward_head.weight", "lm_head.weight"
# The architecture that reads a score from the last token, for each that gives logits.
CLASSIFIERS = {
    "GPT2LMHeadModel": "GPT2ForSequenceClassification",
    "LlamaForCausalLM": "LlamaForSequenceClassification",
    "Qwen3ForCausalLM": "Qwen3ForSequenceClassification",
}


@dataclass(frozen=True)
class Weights:
    """A model's settings and its parameters, read one at a time by our names: fp32, on the CPU."""

    config: Model
    rows: int  # of the embedding
    read: Callable[[str], Tensor]
    scores: bool = False  # a reward model: `HEAD` in place of the projection to the vocabulary

    @classmethod
    def of_checkpoint(cls, info: CheckpointInfo) -> Weights:
        """Those of a checkpoint; raises `ValueError` as `open_weights`."""
        rows, reader = open_weights(info)
        config = info.recipe.model
        scores = isinstance(info.recipe.train.objective, RewardModelling)
        shapes = {**dict(parameter_shapes(config, rows)), **({HEAD: (1, config.hidden_size)} if scores else {})}
        return cls(config, rows, lambda name: reader.whole(name, shapes[name]), scores)

    @classmethod
    def of_model(cls, model: Transformer) -> Weights:
        """Those of a model in memory."""
        parameters = dict(model.named_parameters())
        return cls(model.config, model.vocab_size, lambda name: parameters[name].detach().cpu().float())

    @cached_property
    def names(self) -> frozenset[str]:
        """Of all parameters."""
        return frozenset([*(name for name, _ in parameter_shapes(self.config, self.rows)), *([HEAD] * self.scores)])

    def plain(self, name: str) -> Tensor:
        """A weight of the same function without muP, whose factors no architecture has.

        They go into the last norm and the queries, and logits stay the same.
        """
        value, config = self.read(name), self.config
        if name in ("norm.weight", "norm.bias") and config.mup_ratio != 1:
            return value * config.mup_ratio
        if name == HEAD:  # it reads what the norm gives, without muP's factor
            return value / config.mup_ratio
        if config.query_scale != 1:
            if name.endswith("q_norm.weight"):
                return value * config.query_scale
            if name.endswith(("qkv.weight", "qkv.bias")) and not config.qk_norm:
                queries = config.num_heads * config.head_width
                return torch.cat([value[:queries] * config.query_scale, value[queries:]])
        return value


def export_directory(
    source: Weights | Transformer,
    vocab_dir: Path,
    target: Path,
    dtype: str = "fp32",
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    check: Callable[[Path], None] | None = None,
    chat: bool = False,
) -> Path:
    """Writes a directory that `AutoModelForCausalLM` and `AutoTokenizer` load; returns it.

    A reward model is for `AutoModelForSequenceClassification`, with one label.

    The padding of the vocabulary is cut off: the logits of all tokens of the tokenizer stay as they are. Where GPT-2
    has biases and the model has none, they are zero. Special tokens, template, ids that end a text and settings of
    generation are those of the tokenizer's directory.

    Args:
        source: the weights.
        vocab_dir: with tokenizer.json, and of an imported model the files that came with it.
        target: must not exist, or be empty.
        dtype: fp32, bf16 or fp16.
        shard_bytes: most bytes of a file, but for a tensor that is larger alone; about as much memory is taken.
        check: called with the finished directory before it gets its name; what it raises leaves nothing behind.
        chat: the model reads conversations. The directory gets the chat template, `<|end|>` as the token that ends an
            answer, and a padding token of its own.

    Raises:
        ValueError: when no architecture covers the settings, the tokenizer has more tokens than the model, or a weight
            is too large for fp16.
    """
    weights = Weights.of_model(source) if isinstance(source, Transformer) else source
    name = architecture_of(weights.config)
    vocab = Vocab.load(vocab_dir)
    if vocab.size > weights.rows:
        raise ValueError(
            f"the tokenizer in {vocab_dir} has {vocab.size} tokens, the model only {weights.rows}; "
            "export with the tokenizer the model was trained with"
        )
    ids = special_ids(vocab, vocab_dir)
    tokenizer_settings, generation_settings = chat_configs(vocab) if chat else ({}, {})
    settings = {
        "architectures": [CLASSIFIERS[name] if weights.scores else name],
        **ARCHITECTURES[name].settings(weights.config),
        **ids,
        **generation_settings,
        **({"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}} if weights.scores else {}),
        "vocab_size": vocab.size,
        "tie_word_embeddings": weights.config.tied_embeddings,
        "initializer_range": weights.config.init_std,
        "torch_dtype": str(DTYPES[dtype]).removeprefix("torch."),
    }
    with atomic_directory(target) as directory:
        write_json(directory / CONFIG_NAME, settings)
        (directory / TOKENIZER_NAME).write_bytes((vocab_dir / TOKENIZER_NAME).read_bytes())
        copy_companions(vocab_dir, directory)
        if not (vocab_dir / SPECIAL_IDS).is_file() and not (directory / GENERATION_CONFIG).is_file():
            write_json(directory / GENERATION_CONFIG, ids)
        if chat:
            _update(directory / TOKENIZER_CONFIG, tokenizer_settings)
            _update(directory / GENERATION_CONFIG, generation_settings)
        _write_shards(weights, name, vocab.size, DTYPES[dtype], shard_bytes, directory)
        if check is not None:
            check(directory)
    return target


def _update(file: Path, settings: dict[str, Any]) -> None:
    write_json(file, {**(read_object(file) if file.is_file() else {}), **settings})


def special_ids(vocab: Vocab, vocab_dir: Path) -> dict[str, Any]:
    """The ids for config.json: those of an imported model's, else the vocabulary's own."""
    if (vocab_dir / SPECIAL_IDS).is_file():
        return {key: value for key, value in read_object(vocab_dir / SPECIAL_IDS).items() if key in IDS}
    return {"bos_token_id": vocab.begin_id, "eos_token_id": vocab.eod_id}


# -------------------------------------------------------------------------------------------------------------- shards
class _Part(NamedTuple):
    """One tensor on the other side: which rows of which of our weights."""

    name: str
    weight: Weight
    shape: tuple[int, ...]  # of all of our weight, without the padding of the vocabulary
    first: int
    rows: int

    @property
    def numbers(self) -> int:
        return self.rows * math.prod(self.shape[1:])


def _parts(weights: Weights, name: str, vocab_size: int) -> Iterator[_Part]:
    shapes = dict(parameter_shapes(weights.config, weights.rows))
    shapes |= {key: (vocab_size, *shapes[key][1:]) for key in ("embed.weight", "lm_head.weight") if key in shapes}
    if weights.scores:
        shapes[HEAD] = (1, weights.config.hidden_size)
    kept = (one for one in ARCHITECTURES[name].weights(weights.config) if not weights.scores or one.ours != _PROJECTION)
    for weight in (*kept, *([Weight(HEAD, ("score.weight",))] * weights.scores)):
        # A bias that only GPT-2 has is as long as its weight has rows.
        shape = shapes.get(weight.ours) or shapes[weight.ours.removesuffix("bias") + "weight"][:1]
        first = 0
        for theirs, rows in zip(weight.theirs, weight.rows or shape[:1], strict=True):
            yield _Part(theirs, weight, shape, first, rows)
            first += rows


def _write_shards(
    weights: Weights, name: str, vocab_size: int, dtype: torch.dtype, shard_bytes: int, directory: Path
) -> None:
    """Writes all tensors, and the index where there are several files; reads a weight when its file is written."""
    shards: list[list[_Part]] = [[]]
    size = total = 0
    for part in _parts(weights, name, vocab_size):
        needed = part.numbers * dtype.itemsize
        if shards[-1] and size + needed > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(part)
        size, total = size + needed, total + needed
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    places: dict[str, str] = {}
    value: Callable[[Weight, tuple[int, ...]], Tensor] = lru_cache(maxsize=1)(partial(_value, weights, dtype))
    for file, parts in zip(names if len(shards) > 1 else [WEIGHTS_NAME], shards, strict=True):
        _write_shard(parts, value, directory / file)
        places |= dict.fromkeys((part.name for part in parts), file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_text(directory / INDEX_NAME, json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_shard(parts: list[_Part], value: Callable[[Weight, tuple[int, ...]], Tensor], file: Path) -> None:
    """Holds the tensors of one file, and lets them go before the next one's are read."""
    save_tensors({part.name: _tensor(part, value(part.weight, part.shape)) for part in parts}, file, {"format": "pt"})


def _value(weights: Weights, dtype: torch.dtype, weight: Weight, shape: tuple[int, ...]) -> Tensor:
    value = weights.plain(weight.ours)[: shape[0]] if weight.ours in weights.names else torch.zeros(shape)
    return in_dtype(value, dtype, weight.ours)


def _tensor(part: _Part, value: Tensor) -> Tensor:
    rows = value[part.first : part.first + part.rows]
    # A copy, so that no tensor of a file holds the memory of a larger one.
    return (rows.T if part.weight.transposed else rows).clone(memory_format=torch.contiguous_format)


def in_dtype(value: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The values in this dtype; raises `ValueError` where one becomes infinite."""
    cast = value.to(dtype)
    if dtype == torch.float16 and not bool(torch.isfinite(cast).all()) and bool(torch.isfinite(value).all()):
        raise ValueError(f"`{name}` holds numbers up to {value.abs().max():,.0f}, more than fp16 has; use --dtype bf16")
    return cast


def read_size(text: str) -> int:
    """Bytes of a size such as 5GB, 500MB or 1GiB; raises `ValueError` for anything else."""
    units = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    number = text.strip().rstrip("BGIKMbgikm ")
    unit = text.strip()[len(number) :].strip().upper()
    try:
        size = float(number) * units[unit]
    except (ValueError, KeyError):
        size = 0.0
    if not 1 <= size < 2**63:
        raise ValueError(f"--max-shard-size {text}: give a size such as 5GB or 500MB")
    return int(size)

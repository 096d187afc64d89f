"""Hugging Face directories out and in: config.json, model.safetensors, tokenizer.json. Nothing in them is executed.

Three architectures cover the settings of the `model` section: GPT2LMHeadModel, LlamaForCausalLM, Qwen3ForCausalLM.
Written with safetensors and json alone; logits equal to `transformers` for each (tests/reference).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from configs.files import atomic_directory, read_json, write_json
from configs.model_section import Model
from data_prep.vocab import TOKENIZER_NAME, Vocab
from pretrain.exportable import architecture_of
from pretrain.huggingface_config import CONFIG_NAME, gpt2_settings, llama_settings, read_gpt2, read_llama
from pretrain.model import Transformer

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"


class Weight(NamedTuple):
    """One parameter of ours and where it lies on the other side."""

    ours: str
    theirs: tuple[str, ...]  # several: ours is their concatenation along the rows
    rows: tuple[int, ...] = ()  # of each of several
    transposed: bool = False  # GPT-2's Conv1D keeps (in, out)


# ------------------------------------------------------------------------------------------------------------- weights
def _gpt2_weights(config: Model) -> Iterator[Weight]:
    yield Weight("embed.weight", ("transformer.wte.weight",))
    yield Weight("position.weight", ("transformer.wpe.weight",))
    for layer in range(config.num_layers):
        here, there = f"blocks.{layer}.", f"transformer.h.{layer}."
        for ours, theirs in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2")):
            yield Weight(f"{here}{ours}.weight", (f"{there}{theirs}.weight",))
            yield Weight(f"{here}{ours}.bias", (f"{there}{theirs}.bias",))
        for ours, theirs in (
            ("attention.qkv", "attn.c_attn"),
            ("attention.out", "attn.c_proj"),
            ("mlp.up", "mlp.c_fc"),
            ("mlp.down", "mlp.c_proj"),
        ):
            yield Weight(f"{here}{ours}.weight", (f"{there}{theirs}.weight",), transposed=True)
            yield Weight(f"{here}{ours}.bias", (f"{there}{theirs}.bias",))
    yield Weight("norm.weight", ("transformer.ln_f.weight",))
    yield Weight("norm.bias", ("transformer.ln_f.bias",))
    if not config.tied_embeddings:
        yield Weight("lm_head.weight", ("lm_head.weight",))


def _llama_weights(config: Model) -> Iterator[Weight]:
    query, key = config.num_heads * config.head_width, config.kv_heads * config.head_width
    yield Weight("embed.weight", ("model.embed_tokens.weight",))
    for layer in range(config.num_layers):
        here, there = f"blocks.{layer}.", f"model.layers.{layer}."
        yield Weight(f"{here}attention_norm.weight", (f"{there}input_layernorm.weight",))
        yield Weight(f"{here}mlp_norm.weight", (f"{there}post_attention_layernorm.weight",))
        if config.qk_norm:
            yield Weight(f"{here}attention.q_norm.weight", (f"{there}self_attn.q_norm.weight",))
            yield Weight(f"{here}attention.k_norm.weight", (f"{there}self_attn.k_norm.weight",))
        for kind in ("weight", "bias") if config.bias else ("weight",):
            qkv = tuple(f"{there}self_attn.{name}_proj.{kind}" for name in "qkv")
            yield Weight(f"{here}attention.qkv.{kind}", qkv, (query, key, key))
            yield Weight(f"{here}attention.out.{kind}", (f"{there}self_attn.o_proj.{kind}",))
            gate_up = tuple(f"{there}mlp.{name}_proj.{kind}" for name in ("gate", "up"))
            yield Weight(f"{here}mlp.up.{kind}", gate_up, (config.mlp_width, config.mlp_width))
            yield Weight(f"{here}mlp.down.{kind}", (f"{there}mlp.down_proj.{kind}",))
    yield Weight("norm.weight", ("model.norm.weight",))
    if not config.tied_embeddings:
        yield Weight("lm_head.weight", ("lm_head.weight",))


class Architecture(NamedTuple):
    """One class of `transformers`: the way there and back."""

    settings: Callable[[Model], dict[str, Any]]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    weights: Callable[[Model], Iterator[Weight]]


ARCHITECTURES = {
    "GPT2LMHeadModel": Architecture(gpt2_settings, read_gpt2, _gpt2_weights),
    "LlamaForCausalLM": Architecture(llama_settings, read_llama, _llama_weights),
    "Qwen3ForCausalLM": Architecture(llama_settings, read_llama, _llama_weights),
}


# -------------------------------------------------------------------------------------------------------------- export
def export_directory(model: Transformer, vocab_dir: Path, target: Path) -> Path:
    """Writes a directory that `AutoModelForCausalLM` and `AutoTokenizer` load; returns it.

    The padding of the vocabulary is cut off: the logits of all tokens of the tokenizer stay as they are. Where GPT-2
    has biases and the model has none, they are zero. Weights keep their dtype. muP's factors, which no
    architecture has, are multiplied into the last norm and the queries: logits are the same.

    Raises:
        ValueError: when no architecture covers the settings, or the tokenizer has more tokens than the model.
    """
    name = architecture_of(model.config)
    vocab = Vocab.load(vocab_dir)
    if vocab.size > model.vocab_size:
        raise ValueError(
            f"the tokenizer in {vocab_dir} has {vocab.size} tokens, the model only {model.vocab_size}; "
            "export with the tokenizer the model was trained with"
        )
    special = {"bos_token_id": vocab.eod_id, "eos_token_id": vocab.eod_id}
    settings = {
        "architectures": [name],
        **ARCHITECTURES[name].settings(model.config),
        **special,
        "vocab_size": vocab.size,
        "tie_word_embeddings": model.config.tied_embeddings,
        "initializer_range": model.config.init_std,
        "torch_dtype": str(model.embed.weight.dtype).removeprefix("torch."),
    }
    with atomic_directory(target) as directory:
        write_json(directory / CONFIG_NAME, settings)
        write_json(directory / "generation_config.json", special)
        vocab.save(directory)
        save_file(_exported(model, name, vocab.size), directory / WEIGHTS_NAME, metadata={"format": "pt"})
    return target


def _exported(model: Transformer, name: str, vocab_size: int) -> dict[str, Tensor]:
    parameters = {key: _without_mup(key, value.detach().cpu(), model.config) for key, value in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    for weight in ARCHITECTURES[name].weights(model.config):
        if weight.ours in parameters:
            value = parameters[weight.ours]
        else:  # a bias that only GPT-2 has
            owner = parameters[weight.ours.removesuffix("bias") + "weight"]
            value = owner.new_zeros(owner.shape[0])
        if weight.ours in ("embed.weight", "lm_head.weight"):
            value = value[:vocab_size]
        parts = torch.split(value, list(weight.rows)) if weight.rows else (value,)
        for part_name, part in zip(weight.theirs, parts, strict=True):
            tensors[part_name] = (part.T if weight.transposed else part).contiguous()
    return tensors


def _without_mup(name: str, value: Tensor, config: Model) -> Tensor:
    """A weight of the same function in the standard parametrisation."""
    if name in ("norm.weight", "norm.bias") and config.mup_ratio != 1:
        return value * config.mup_ratio
    if config.query_scale != 1:
        if name.endswith("q_norm.weight"):
            return value * config.query_scale
        if name.endswith(("qkv.weight", "qkv.bias")) and not config.qk_norm:
            queries = config.num_heads * config.head_width
            return torch.cat([value[:queries] * config.query_scale, value[queries:]])
    return value


# -------------------------------------------------------------------------------------------------------------- import
def import_directory(path: Path) -> tuple[Transformer, Path]:
    """Reads a Hugging Face directory: the model (fp32, CPU, eval mode) and the path of its tokenizer.json.

    Raises:
        ValueError: as `open_directory`.
    """
    config, tokenizer, read = open_directory(path)
    model = _on_meta(config).materialize("cpu").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(read(name))
    return model, tokenizer


def open_directory(path: Path) -> tuple[Model, Path, Callable[[str], Tensor]]:
    """A Hugging Face directory's settings, its tokenizer.json, and a function that reads a weight by our name.

    One `model.safetensors`, or shards with an index. No weight is read before it is asked for.

    Raises:
        ValueError: when a file is missing or damaged, the weights are only there as pickle, or the architecture or one
            of its settings is not ours; on reading, when a shape is not what config.json says.
    """
    path = Path(path)
    for name in (CONFIG_NAME, TOKENIZER_NAME):
        if not (path / name).is_file():
            raise ValueError(f"{path} has no {name}; give a Hugging Face model directory with one")
    source = read_json(path / CONFIG_NAME)
    names = source.get("architectures") or ["none"]
    if names[0] not in ARCHITECTURES:
        raise ValueError(
            f"{path / CONFIG_NAME}: architecture {names[0]} cannot be imported; known: {', '.join(ARCHITECTURES)}"
        )
    try:
        config = Model(**ARCHITECTURES[names[0]].read(source), vocab_size=source["vocab_size"])
    except KeyError as error:
        raise ValueError(f"{path / CONFIG_NAME} lacks {error}; the file is incomplete, get it again") from error
    weights = {weight.ours: weight for weight in ARCHITECTURES[names[0]].weights(config)}
    return config, path / TOKENIZER_NAME, _reader(path, config, weights)


def _on_meta(config: Model) -> Transformer:
    assert config.vocab_size
    with torch.device("meta"):
        return Transformer(config, config.vocab_size)


# Buffers of old versions: causal masks, rotary frequencies.
_REDUNDANT = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


def _reader(path: Path, config: Model, weights: dict[str, Weight]) -> Callable[[str], Tensor]:
    where = _open_weights(path)
    theirs = [name for weight in weights.values() for name in weight.theirs]
    if missing := [name for name in theirs if name not in where]:
        raise ValueError(f"{path} lacks the weight {missing[0]}; it does not belong to this {CONFIG_NAME}")
    redundant = (*_REDUNDANT, "lm_head.weight") if config.tied_embeddings else _REDUNDANT
    if unknown := [name for name in where if name not in theirs and not name.endswith(redundant)]:
        raise ValueError(f"{path} has weights that this architecture does not use, such as {unknown[0]}")
    shapes = {name: parameter.shape for name, parameter in _on_meta(config).named_parameters()}

    def read(ours: str) -> Tensor:
        weight = weights[ours]
        parts = [where[name]() for name in weight.theirs]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        value = value.T if weight.transposed else value
        if value.shape != shapes[ours]:
            raise ValueError(
                f"{path}: {weight.theirs[0]} has shape {tuple(value.shape)} where {CONFIG_NAME} "
                f"asks for {tuple(shapes[ours])}"
            )
        return value.float()

    return read


def _weight_files(path: Path) -> list[Path]:
    if (path / INDEX_NAME).is_file():
        # Only the last part of each name: an index cannot point outside its directory.
        return sorted({path / Path(name).name for name in read_json(path / INDEX_NAME)["weight_map"].values()})
    if (path / WEIGHTS_NAME).is_file():
        return [path / WEIGHTS_NAME]
    if pickles := sorted(file.name for file in path.iterdir() if file.suffix in {".bin", ".pt", ".pth", ".ckpt"}):
        raise ValueError(
            f"{path} has its weights only as pickle ({pickles[0]}), which can run code when read; "
            "get the safetensors version, or convert it with `save_pretrained` where you trust it"
        )
    raise ValueError(f"{path} has no {WEIGHTS_NAME} and no {INDEX_NAME}")


def _open_weights(path: Path) -> dict[str, Callable[[], Tensor]]:
    """How to read each weight, by its name; nothing is read yet."""
    where: dict[str, Callable[[], Tensor]] = {}
    for file in _weight_files(path):
        try:
            opened: Any = safe_open(file, framework="pt")
        except Exception as error:  # safetensors and the file system raise different ones for missing and damaged
            raise ValueError(f"{file} cannot be read as safetensors ({error}); get it again") from error
        for key in opened.keys():  # noqa: SIM118  (not a mapping)
            # The first GPT-2 files were saved without the prefix.
            name = f"transformer.{key}" if key.startswith(("h.", "wte.", "wpe.", "ln_f.")) else key
            where[name] = partial(opened.get_tensor, key)
    return where

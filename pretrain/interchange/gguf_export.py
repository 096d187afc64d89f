"""Writes a GGUF file for llama.cpp with its own package `gguf`, one tensor in memory at a time.

llama.cpp cuts text by pre-tokenizers that it knows by name, and its converter finds the name by a hash of vocabularies
that it knows. A vocabulary trained here is in no such list, so the name is chosen by the pattern itself. Tried against
llama.cpp: docs/share-and-serve.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from configs.common.files import atomic_path, read_object
from configs.schema.model import Model
from data_prep.tokens.special_tokens import SPECIAL_IDS, TOKENIZER_CONFIG
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import PATTERNS
from pretrain.interchange.exportable import architecture_of
from pretrain.interchange.huggingface_export import DTYPES, Weights, in_dtype
from pretrain.model.rope import frequencies, rope_base
from pretrain.sizes.shapes import parameter_shapes

SUFFIX = ".gguf"
_NAMES = {"GPT2LMHeadModel": "gpt2", "LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3"}
# dbrx has Llama 3's pattern without what `llama-bpe` adds: whole pieces looked up before merging, and a beginning.
_PRE = {"gpt2": "gpt-2", "gpt4": "dbrx", "qwen2": "qwen2"}


class _Tensor(NamedTuple):
    """One tensor of the file: our parameter, and what is made of it."""

    name: str
    ours: str
    shape: tuple[int, ...]
    make: Callable[[Tensor], Tensor] = lambda value: value
    exact: bool = False  # fp32 whatever the matrices are


def export_gguf(
    weights: Weights, vocab_dir: Path, target: Path, dtype: str = "fp32", lineage: dict[str, Any] | None = None
) -> Path:
    """Writes a GGUF file that llama.cpp reads; returns it.

    Matrices are of `dtype`; norms, biases and positions stay fp32, as llama.cpp has them. Where the settings have
    scaled rotary positions, the file holds a divisor for every frequency.

    Args:
        lineage: kept in the file under `replica.*`.

    Raises:
        ValueError: when llama.cpp has no architecture or no pre-tokenizer for it (named), or `gguf` is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ValueError("GGUF files need the Python package gguf; install it: pip install gguf") from error

    config = weights.config
    architecture = _NAMES[architecture_of(config)]
    scaled = config.rope_scaling is not None and config.rope_scaling.kind != "ntk"
    if architecture == "qwen3" and scaled:
        raise ValueError("llama.cpp has no divisors of frequencies for Qwen3: model.rope_scaling with model.qk_norm")
    vocab = Vocab.load(vocab_dir)
    pre = pre_tokenizer(vocab)
    plan = list(_tensors(weights, architecture, vocab.size, scaled))
    kind = {"fp32": gguf.LlamaFileType.ALL_F32, "fp16": gguf.LlamaFileType.MOSTLY_F16}
    with atomic_path(target) as path:
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_file_type(kind.get(dtype, gguf.LlamaFileType.MOSTLY_BF16))
        _add_settings(writer, config, architecture)
        _add_vocabulary(writer, gguf, vocab, vocab_dir, pre)
        for key, value in (lineage or {}).items():
            add = writer.add_uint64 if isinstance(value, int) else writer.add_string
            add(f"replica.{key}", value)
        for tensor in plan:
            stored = _stored(tensor, dtype)
            size = torch.Size(tensor.shape).numel() * stored.itemsize
            quantised = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[stored]
            of_type = getattr(gguf.GGMLQuantizationType, quantised)
            writer.add_tensor_info(tensor.name, tensor.shape, "<u2", size, raw_dtype=of_type)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in plan:
                writer.write_tensor_data(_bytes(weights, tensor, _stored(tensor, dtype)))
        except OSError as error:  # without the file's name, as numpy raises it
            raise OSError(error.errno, error.strerror, str(target)) from error
        finally:
            writer.close()
    return target


def pre_tokenizer(vocab: Vocab) -> str:
    """llama.cpp's name for the way this vocabulary cuts text; raises `ValueError` where it has none."""
    description = json.loads(vocab.tokenizer.to_str())
    model, before = description["model"], description["pre_tokenizer"] or {}
    *cuts, last = before.get("pretokenizers", [before])
    found: str | None = None
    byte_level = last.get("type") == "ByteLevel" and not last["add_prefix_space"]
    if byte_level and last["use_regex"] and not cuts:
        found = "gpt2"
    elif byte_level and len(cuts) == 1 and cuts[0].get("type") == "Split" and cuts[0]["behavior"] == "Isolated":
        regex = cuts[0]["pattern"].get("Regex")
        found = next((name for name in _PRE if PATTERNS.get(name) == regex), None)
        if found is None:
            found = next((name for name, pattern in PATTERNS.items() if pattern == regex), f"of {regex!r}")
    elif byte_level and not cuts and not model.get("merges"):
        return _PRE["gpt2"]  # every byte is a token, wherever text is cut
    normal = description["normalizer"] in (None, {"type": "NFC"}) and model["type"] == "BPE"
    if found not in _PRE or not normal:
        raise ValueError(
            f"llama.cpp has no pre-tokenizer for the pattern {found}"
            if found and normal
            else "llama.cpp reads no vocabulary of this kind from us: it is not byte-level BPE"
        )
    if model.get("ignore_merges"):
        if found != "gpt4":
            raise ValueError(f"llama.cpp has no pre-tokenizer for the pattern {found} with ignore_merges")
        return "llama-bpe"
    return _PRE[found]


# ------------------------------------------------------------------------------------------------------------ settings
def _add_settings(writer: Any, config: Model, architecture: str) -> None:
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.kv_heads)
    if architecture == "gpt2":
        writer.add_layer_norm_eps(config.norm_eps)
        return
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_key_length(config.head_width)
    writer.add_value_length(config.head_width)
    writer.add_rope_dimension_count(config.head_width)
    writer.add_rope_freq_base(rope_base(config))


def _add_vocabulary(writer: Any, gguf: Any, vocab: Vocab, vocab_dir: Path, pre: str) -> None:
    """Tokens, their kinds, merges, and what a text begins and ends with."""
    before, after = vocab.template
    if before not in ([], [vocab.begin_id]) or after not in ([], [vocab.eod_id]):
        raise ValueError(f"llama.cpp has no template that puts {before} before and {after} after a prompt")
    names = {index: token for token, index in vocab.vocabulary.items()}
    added = vocab.tokenizer.get_added_tokens_decoder()
    tokens, kinds = [], []
    for index in range(vocab.size):
        tokens.append(names.get(index, f"[PAD{index}]"))
        if index not in names:
            kinds.append(gguf.TokenType.UNUSED)
        elif index in vocab.special_ids:
            kinds.append(gguf.TokenType.CONTROL)
        else:
            kinds.append(gguf.TokenType.USER_DEFINED if index in added else gguf.TokenType.NORMAL)
    merges = [" ".join(pair) for pair in json.loads(vocab.tokenizer.to_str())["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_vocab_size(vocab.size)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    # llama.cpp wants the key; a pair with the end-of-text token meets in no text.
    writer.add_token_merges(merges or [f"{vocab.end_of_document} {vocab.end_of_document}"])
    writer.add_bos_token_id(vocab.begin_id)
    writer.add_eos_token_id(vocab.eod_id)
    others = sorted(vocab.end_ids - {vocab.eod_id})
    if len(others) > 2:
        raise ValueError(f"a GGUF file has room for three ids that end a text, not for {sorted(vocab.end_ids)}")
    for index, add in zip(others, (writer.add_eot_token_id, writer.add_eom_token_id), strict=False):
        add(index)
    writer.add_add_bos_token(bool(before))
    writer.add_add_eos_token(bool(after))
    if (vocab_dir / SPECIAL_IDS).is_file() and isinstance(
        pad := read_object(vocab_dir / SPECIAL_IDS).get("pad_token_id"), int
    ):
        writer.add_pad_token_id(pad)
    settings = read_object(vocab_dir / TOKENIZER_CONFIG) if (vocab_dir / TOKENIZER_CONFIG).is_file() else {}
    if (vocab_dir / "chat_template.jinja").is_file():
        writer.add_chat_template((vocab_dir / "chat_template.jinja").read_text(encoding="utf-8"))
    elif isinstance(settings.get("chat_template"), str):
        writer.add_chat_template(settings["chat_template"])


# ------------------------------------------------------------------------------------------------------------- tensors
def _stored(tensor: _Tensor, dtype: str) -> torch.dtype:
    return torch.float32 if tensor.exact or len(tensor.shape) < 2 else DTYPES[dtype]


def _bytes(weights: Weights, tensor: _Tensor, dtype: torch.dtype) -> Any:
    """The values as they lie in the file, as (…) uint16, because numpy has no bf16."""
    value = weights.plain(tensor.ours) if tensor.ours in weights.names else torch.zeros(tensor.shape)
    made = in_dtype(tensor.make(value).contiguous(), dtype, tensor.name)
    assert made.shape == tensor.shape, tensor.name
    return made.view(torch.uint16 if made.dtype.itemsize == 2 else torch.int32).numpy()


def _tensors(weights: Weights, architecture: str, vocab_size: int, scaled: bool) -> Iterator[_Tensor]:
    """Everything in the file, in its order; nothing is read."""
    config = weights.config
    shapes = dict(parameter_shapes(config, weights.rows))
    width = config.hidden_size

    def cut(value: Tensor) -> Tensor:
        return value[:vocab_size]

    yield _Tensor("token_embd.weight", "embed.weight", (vocab_size, width), cut)
    if architecture == "gpt2":
        yield _Tensor("position_embd.weight", "position.weight", shapes["position.weight"], exact=True)
    elif scaled:
        plain, divided = frequencies(config.model_copy(update={"rope_scaling": None}))[0], frequencies(config)[0]
        factors = plain / divided
        yield _Tensor("rope_freqs.weight", "norm.weight", tuple(factors.shape), lambda _: factors)
    yield _Tensor("output_norm.weight", "norm.weight", (width,))
    if architecture == "gpt2":
        yield _Tensor("output_norm.bias", "norm.bias", (width,))
    if not config.tied_embeddings:
        yield _Tensor("output.weight", "lm_head.weight", (vocab_size, width), cut)
    of_block = _gpt2_block if architecture == "gpt2" else _llama_block
    for layer in range(config.num_layers):
        for tensor in of_block(config, architecture):
            ours = f"blocks.{layer}.{tensor.ours}"
            yield tensor._replace(name=f"blk.{layer}.{tensor.name}", ours=ours, exact=tensor.exact)


def _gpt2_block(config: Model, _: str) -> Iterator[_Tensor]:
    width, inner = config.hidden_size, config.mlp_width
    for theirs, ours, outputs, inputs in (
        ("attn_qkv", "attention.qkv", 3 * width, width),
        ("attn_output", "attention.out", width, width),
        ("ffn_up", "mlp.up", inner, width),
        ("ffn_down", "mlp.down", width, inner),
    ):
        yield _Tensor(f"{theirs}.weight", f"{ours}.weight", (outputs, inputs))
        yield _Tensor(f"{theirs}.bias", f"{ours}.bias", (outputs,))
    for theirs, ours in (("attn_norm", "attention_norm"), ("ffn_norm", "mlp_norm")):
        for kind in ("weight", "bias"):
            yield _Tensor(f"{theirs}.{kind}", f"{ours}.{kind}", (width,))


def _llama_block(config: Model, architecture: str) -> Iterator[_Tensor]:
    width, inner, head = config.hidden_size, config.mlp_width, config.head_width
    query, key = config.num_heads * head, config.kv_heads * head
    heat = frequencies(config)[1] ** 2  # of yarn's softmax: cos and sin of queries and keys, hence the square

    def rows(first: int, count: int, turned: bool = False, by: float = 1.0) -> Callable[[Tensor], Tensor]:
        def make(value: Tensor) -> Tensor:
            part = value[first : first + count]
            part = part if by == 1.0 else part * by
            return interleaved(part, head) if turned else part

        return make

    turned = architecture == "llama"  # Qwen3 keeps the half-split layout there
    for kind in ("weight", "bias") if config.bias else ("weight",):
        end = (width,) if kind == "weight" else ()
        qkv = f"attention.qkv.{kind}"
        yield _Tensor(f"attn_q.{kind}", qkv, (query, *end), rows(0, query, turned, heat))
        yield _Tensor(f"attn_k.{kind}", qkv, (key, *end), rows(query, key, turned))
        yield _Tensor(f"attn_v.{kind}", qkv, (key, *end), rows(query + key, key))
        yield _Tensor(f"attn_output.{kind}", f"attention.out.{kind}", (width, *((query,) if end else ())))
        yield _Tensor(f"ffn_gate.{kind}", f"mlp.up.{kind}", (inner, *end), rows(0, inner))
        yield _Tensor(f"ffn_up.{kind}", f"mlp.up.{kind}", (inner, *end), rows(inner, inner))
        yield _Tensor(f"ffn_down.{kind}", f"mlp.down.{kind}", (width, *((inner,) if end else ())))
    if config.qk_norm:
        yield _Tensor("attn_q_norm.weight", "attention.q_norm.weight", (head,))
        yield _Tensor("attn_k_norm.weight", "attention.k_norm.weight", (head,))
    yield _Tensor("attn_norm.weight", "attention_norm.weight", (width,))
    yield _Tensor("ffn_norm.weight", "mlp_norm.weight", (width,))


def interleaved(value: Tensor, head: int) -> Tensor:
    """Rows of heads from the half-split layout (component i turns with i + E/2) to llama.cpp's (2i with 2i + 1)."""
    heads = value.shape[0] // head
    return value.view(heads, 2, head // 2, *value.shape[1:]).transpose(1, 2).reshape(value.shape)

"""Maps our parameters to those of a Hugging Face directory: other names, transposed, or in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from configs.schema.model import Model
from pretrain.interchange.huggingface_config import Settings, gpt2_settings, llama_settings, read_gpt2, read_llama


class Weight(NamedTuple):
    """One parameter of ours and where it lies on the other side."""

    ours: str
    theirs: tuple[str, ...]  # several: ours is their concatenation along the rows
    rows: tuple[int, ...] = ()  # of each of several
    transposed: bool = False  # GPT-2's Conv1D keeps (in, out)


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
    read: Callable[[Settings], dict[str, Any]]
    weights: Callable[[Model], Iterator[Weight]]


ARCHITECTURES = {
    "GPT2LMHeadModel": Architecture(gpt2_settings, read_gpt2, _gpt2_weights),
    "LlamaForCausalLM": Architecture(llama_settings, read_llama, _llama_weights),
    "Qwen3ForCausalLM": Architecture(llama_settings, read_llama, _llama_weights),
}

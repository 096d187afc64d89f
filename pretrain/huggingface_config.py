"""The `model` section and `config.json` of a Hugging Face directory, each made from the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from configs.model_section import Model, RopeScaling
from pretrain.rope import rope_base

CONFIG_NAME = "config.json"


def gpt2_settings(config: Model) -> dict[str, Any]:
    """What GPT2Config calls the settings."""
    return {
        "model_type": "gpt2",
        "n_layer": config.num_layers,
        "n_embd": config.hidden_size,
        "n_head": config.num_heads,
        "n_inner": config.mlp_width,
        "n_positions": config.context_length,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), config.dropout),
    }


def llama_settings(config: Model) -> dict[str, Any]:
    """What LlamaConfig and Qwen3Config call the settings."""
    scaling = _rope_settings(config.rope_scaling)
    return {
        "model_type": "qwen3" if config.qk_norm else "llama",
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.context_length,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        # The first is read by transformers 4 and most other tools, the second by transformers 5.
        "rope_theta": rope_base(config),
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_base(config), **scaling},
        **({"rope_scaling": scaling} if scaling else {}),
        "attention_bias": config.bias,
        "attention_dropout": config.dropout,
        **({} if config.qk_norm else {"mlp_bias": config.bias}),
    }


_ROPE_EXTRAS = {
    "linear": (),
    "yarn": ("beta_fast", "beta_slow", "attention_factor"),
    "llama3": ("low_freq_factor", "high_freq_factor"),
}


def _rope_settings(scaling: RopeScaling | None) -> dict[str, Any]:
    """Empty without scaling, and for `ntk`, which is another theta and nothing else."""
    if scaling is None or scaling.kind == "ntk":
        return {}
    extras = {key: value for key in _ROPE_EXTRAS[scaling.kind] if (value := getattr(scaling, key)) is not None}
    original = scaling.original_context_length
    return {
        "rope_type": scaling.kind,
        "factor": scaling.factor,
        **({"original_max_position_embeddings": original} if original else {}),
        **extras,
    }


def _read_rope(rope: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    _require({"rope_type": kind}, "rope_type", "default", {"default", *_ROPE_EXTRAS})
    for key, plain in (("mscale", None), ("mscale_all_dim", None), ("truncate", True), ("partial_rotary_factor", 1.0)):
        _require(rope, key, plain, {plain, None} if plain is None else {plain})
    if kind == "default":
        return None
    original = rope.get("original_max_position_embeddings")
    if (factor := rope.get("factor")) is None:  # only yarn may leave it out
        factor = source["max_position_embeddings"] / original if original else 1.0
    extras = {key: float(rope[key]) for key in _ROPE_EXTRAS[kind] if rope.get(key) is not None}
    return {"kind": kind, "factor": float(factor), "original_context_length": original, **extras}


def read_gpt2(source: Mapping[str, Any]) -> dict[str, Any]:
    """Ours for a GPT2Config; raises `ValueError` for what we cannot compute."""
    _require(source, "activation_function", "gelu_new", {"gelu_new", "gelu_pytorch_tanh"})
    _require(source, "scale_attn_weights", True, {True})
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        _require(source, key, False, {False})
    return {
        "family": "gpt2",
        "num_layers": source["n_layer"],
        "hidden_size": source["n_embd"],
        "num_heads": source["n_head"],
        "intermediate_size": source.get("n_inner") or 4 * source["n_embd"],
        "context_length": source["n_positions"],
        "norm_eps": float(source.get("layer_norm_epsilon", 1e-5)),
        "dropout": float(source.get("resid_pdrop", 0.1)),
        "tied_embeddings": source.get("tie_word_embeddings", True),
    }


def read_llama(source: Mapping[str, Any]) -> dict[str, Any]:
    """Ours for a LlamaConfig or Qwen3Config; raises `ValueError` for what we cannot compute."""
    qk_norm = source["model_type"] == "qwen3"
    rope = source.get("rope_parameters") or source.get("rope_scaling") or {}
    _require(source, "hidden_act", "silu", {"silu", "swish"})
    _require(source, "use_sliding_window", False, {False})
    bias = source.get("attention_bias", False)
    _require(source, "mlp_bias", False, {bias})
    return {
        "family": "llama",
        "num_layers": source["num_hidden_layers"],
        "hidden_size": source["hidden_size"],
        "num_heads": source["num_attention_heads"],
        "num_kv_heads": source.get("num_key_value_heads"),
        "head_dim": source.get("head_dim") or (128 if qk_norm else None),
        "intermediate_size": source["intermediate_size"],
        "context_length": source["max_position_embeddings"],
        "norm_eps": float(source.get("rms_norm_eps", 1e-6)),
        "rope_theta": float(rope.get("rope_theta") or source.get("rope_theta", 10000.0)),
        "rope_scaling": _read_rope(rope, source),
        "dropout": float(source.get("attention_dropout", 0.0)),
        "tied_embeddings": source.get("tie_word_embeddings", False),
        "bias": bias,
        "qk_norm": qk_norm,
    }


def _require(source: Mapping[str, Any], key: str, default: Any, allowed: set[Any]) -> None:
    value = source.get(key, default)
    if value not in allowed:
        expected = " or ".join(sorted(map(repr, allowed)))
        raise ValueError(f"{CONFIG_NAME}: {key} is {value!r}; only {expected} can be imported")

"""Converts between the `model` section and the `config.json` of a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from configs.schema.model import Model, RopeScaling
from pretrain.model.rope import rope_base

CONFIG_NAME = "config.json"


def gpt2_settings(config: Model) -> dict[str, Any]:
    """The settings under their names in GPT2Config."""
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
    """The settings under their names in LlamaConfig and Qwen3Config."""
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


_ROPE_KINDS = ("default", "linear", "yarn", "llama3")
_ROPE_EXTRAS: dict[str, tuple[str, ...]] = {
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


class Settings:
    """A config.json of others: each value is asked for with its type, and null stands for the default."""

    def __init__(self, file: Path, values: Mapping[str, Any]) -> None:
        self.file, self.values = file, values

    def _value(self, key: str, default: Any, expected: str, fits: Callable[[Any], bool]) -> Any:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if key not in self.values:
            raise ValueError(f"{self.file} lacks {key!r}; the file is incomplete, get it again")
        if not fits(value):
            raise ValueError(f"{self.file}: {key} is {_short(value)}; only {expected} can be imported")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        """A number of things, at least 1; raises `ValueError` naming file, key and value."""
        found: int = self._value(key, default, "a whole number above 0", lambda value: type(value) is int and value > 0)
        return found

    def maybe_whole(self, key: str) -> int | None:
        """The same where it may be left out."""
        return None if self.values.get(key) is None else self.whole(key)

    def number(self, key: str, default: float | None = None) -> float:
        """A number, not infinite; raises as `whole`."""

        def fits(value: Any) -> bool:
            return type(value) in (int, float) and -1e300 < value < 1e300

        return float(self._value(key, default, "a number", fits))

    def flag(self, key: str, default: bool) -> bool:
        """True or false; raises as `whole`."""
        found: bool = self._value(key, default, "true or false", lambda value: isinstance(value, bool))
        return found

    def require(self, key: str, default: Any, allowed: tuple[Any, ...]) -> Any:
        """One of the allowed values; raises as `whole`."""
        expected = " or ".join(sorted(map(repr, allowed)))
        return self._value(
            key, default, expected, lambda value: isinstance(value, (str, int, float)) and value in allowed
        )

    def inner(self, *keys: str) -> Settings:
        """The first of these objects that is there and not empty; else an empty one."""
        for key in keys:
            value = self.values.get(key)
            if value is not None and not isinstance(value, dict):
                raise ValueError(f"{self.file}: {key} is {_short(value)}; only an object can be imported")
            if value:
                return Settings(self.file, value)
        return Settings(self.file, {})


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_rope(rope: Settings, source: Settings) -> dict[str, Any] | None:
    kind = rope.require("rope_type" if rope.values.get("rope_type") is not None else "type", "default", _ROPE_KINDS)
    for key in ("mscale", "mscale_all_dim"):
        if rope.values.get(key) is not None:
            raise ValueError(f"{rope.file}: {key} is {_short(rope.values[key])}; it cannot be imported")
    rope.require("truncate", True, (True,))
    for settings in (rope, source):
        settings.require("partial_rotary_factor", 1.0, (1.0,))
    if kind == "default":
        return None
    context = source.whole("max_position_embeddings")
    key = "original_max_position_embeddings"
    original = rope.maybe_whole(key)
    if kind != "linear":  # as transformers: the key beside the others comes first, the context itself last
        original = source.maybe_whole(key) or original or context
    # yarn alone may leave the factor out.
    factor = rope.number("factor", context / original if kind == "yarn" and original else None)
    extras = {key: rope.number(key) for key in _ROPE_EXTRAS[kind] if rope.values.get(key) is not None}
    return {"kind": kind, "factor": factor, "original_context_length": original, **extras}


def read_gpt2(source: Settings) -> dict[str, Any]:
    """Converts a GPT2Config to our settings; raises `ValueError` for what we cannot compute."""
    source.require("activation_function", "gelu_new", ("gelu_new", "gelu_pytorch_tanh"))
    source.require("scale_attn_weights", True, (True,))
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        source.require(key, False, (False,))
    width = source.whole("n_embd")
    return {
        "family": "gpt2",
        "num_layers": source.whole("n_layer"),
        "hidden_size": width,
        "num_heads": source.whole("n_head"),
        "intermediate_size": source.maybe_whole("n_inner") or 4 * width,
        "context_length": source.whole("n_positions"),
        "norm_eps": source.number("layer_norm_epsilon", 1e-5),
        "dropout": source.number("resid_pdrop", 0.1),
        "tied_embeddings": source.flag("tie_word_embeddings", True),
    }


def read_llama(source: Settings) -> dict[str, Any]:
    """Converts a LlamaConfig or Qwen3Config to our settings; raises `ValueError` for what we cannot compute."""
    qk_norm = source.require("model_type", None, ("llama", "qwen3")) == "qwen3"
    rope = source.inner("rope_parameters", "rope_scaling")
    source.require("hidden_act", "silu", ("silu", "swish"))
    source.require("use_sliding_window", False, (False,))
    bias, of_mlp = source.flag("attention_bias", False), source.flag("mlp_bias", False)
    if bias != of_mlp:
        one, other = ("attention_bias", "mlp_bias") if bias else ("mlp_bias", "attention_bias")
        raise ValueError(
            f"{source.file}: {one} is True without {other}; that cannot be imported, biases are all or none"
        )
    return {
        "family": "llama",
        "num_layers": source.whole("num_hidden_layers"),
        "hidden_size": source.whole("hidden_size"),
        "num_heads": source.whole("num_attention_heads"),
        "num_kv_heads": source.maybe_whole("num_key_value_heads"),
        "head_dim": source.maybe_whole("head_dim") or (128 if qk_norm else None),
        "intermediate_size": source.whole("intermediate_size"),
        "context_length": source.whole("max_position_embeddings"),
        "norm_eps": source.number("rms_norm_eps", 1e-6),
        "rope_theta": rope.number("rope_theta", source.number("rope_theta", 10000.0)),
        "rope_scaling": _read_rope(rope, source),
        "dropout": source.number("attention_dropout", 0.0),
        "tied_embeddings": source.flag("tie_word_embeddings", False),
        "bias": bias,
        "qk_norm": qk_norm,
    }

"""Decides from the settings alone what can be exported, so that it is known before training. Free of torch.

Three classes of `transformers` cover most of the `model` section: GPT2LMHeadModel, LlamaForCausalLM, Qwen3ForCausalLM.
"""

from __future__ import annotations

from typing import Any

from configs.schema.model import Model
from configs.schema.reading_direction import needs_causal
from configs.schema.recipe import Recipe

_PLAIN: dict[str, Any] = {"value_residual": False, "logit_softcap": None}
_LLAMA_LIKE: dict[str, Any] = {**_PLAIN, "position": "rope", "norm": "rmsnorm", "activation": "swiglu"}
# Settings that a model must have to be exported as this class.
REQUIRED: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {
        **_PLAIN,
        "position": "learned",
        "norm": "layernorm",
        "activation": "gelu",
        "qk_norm": False,
    },
    "LlamaForCausalLM": {**_LLAMA_LIKE, "qk_norm": False},
    "Qwen3ForCausalLM": {**_LLAMA_LIKE, "qk_norm": True, "bias": False},
}


def export_problems(recipe: Recipe) -> list[str]:
    """Why a model of this recipe cannot be exported, each with the keys to change; empty when it can."""
    try:
        architecture_of(recipe.model)
    except ValueError as error:
        return [str(error)]
    return []


def architecture_of(config: Model) -> str:
    """The `transformers` class that computes the same function as this model.

    Raises:
        ValueError: naming, for the classes that come nearest, the settings in the way.
    """
    needs_causal(config, "an export")
    wrong = {name: _mismatch(config, name) for name in REQUIRED}
    fewest = min(map(len, wrong.values()))
    nearest = {name: settings for name, settings in wrong.items() if len(settings) == fewest}
    if fewest:
        reasons = " and ".join(f"{name} excludes {', '.join(settings)}" for name, settings in nearest.items())
        raise ValueError(f"no Hugging Face architecture has these model settings together: {reasons}; change them")
    return next(iter(nearest))


def _mismatch(config: Model, name: str) -> list[str]:
    """The settings that keep a model from being exported as this class, as `model.key=value`."""
    wrong = [key for key, value in REQUIRED[name].items() if getattr(config, key) != value]
    found = [f"model.{key}={getattr(config, key)}" for key in wrong]
    if name == "GPT2LMHeadModel":
        if config.kv_heads != config.num_heads:
            found.append(f"model.num_kv_heads={config.kv_heads}")
        if config.head_width * config.num_heads != config.hidden_size:
            found.append(f"model.head_dim={config.head_width}")
    return found

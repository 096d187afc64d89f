"""Defines the recipe's `model` section: the shape of the transformer."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from configs.schema.section import Section

_FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"position": "learned", "norm": "layernorm", "activation": "gelu", "bias": True, "tied_embeddings": True},
    "llama": {"position": "rope", "norm": "rmsnorm", "activation": "swiglu", "bias": False, "tied_embeddings": False},
}


class RopeScaling(Section):
    """Scales rotary frequencies for a longer context than that of the weights.

    See `pretrain/model/rope.py`.
    """

    kind: Literal["linear", "ntk", "yarn", "llama3"] = Field(
        description="linear: arXiv:2306.15595. ntk: a larger rope_theta. yarn: arXiv:2309.00071. llama3: Llama 3.1."
    )
    factor: float = Field(ge=1, description="New context length / old context length.")
    original_context_length: int | None = Field(
        None, ge=2, description="Old context length, in tokens; yarn and llama3 require it."
    )
    beta_fast: float = Field(
        32.0, gt=0, description="yarn: frequencies with more rotations in the old context are kept."
    )
    beta_slow: float = Field(1.0, gt=0, description="yarn: frequencies with fewer rotations are divided by factor.")
    attention_factor: float | None = Field(
        None, gt=0, description="yarn: multiplier of cos and sin; null: 0.1 ln(factor) + 1."
    )
    low_freq_factor: float = Field(
        1.0, gt=0, description="llama3: frequencies with fewer rotations are divided by factor."
    )
    high_freq_factor: float = Field(4.0, gt=0, description="llama3: frequencies with more rotations are kept.")

    @model_validator(mode="after")
    def _whole(self) -> RopeScaling:
        if self.kind in ("yarn", "llama3") and self.original_context_length is None:
            raise ValueError(f"rope_scaling of kind {self.kind} needs original_context_length; set it")
        if self.low_freq_factor >= self.high_freq_factor or self.beta_slow >= self.beta_fast:
            raise ValueError(
                "rope_scaling: low_freq_factor must be below high_freq_factor, and beta_slow below beta_fast"
            )
        return self


class Model(Section):
    """A transformer of one stack of blocks. `family` sets defaults for other keys; each can be set individually."""

    family: Literal["gpt2", "llama"] = Field(
        "llama", description="Defaults for position, norm, activation, bias and tied_embeddings."
    )
    depth: int | None = Field(
        None,
        ge=1,
        description="The dial, as a number of layers: shape and training settings follow from it (docs/scaling.md).",
    )
    size: str | int | None = Field(
        None, description="The dial, as a number of parameters: `124M`, `1.3B`, `500k`. Set this or `depth`, not both."
    )
    num_layers: int = Field(12, ge=1, description="Transformer blocks.")
    hidden_size: int = Field(768, ge=8, description="Width of the residual stream.")
    num_heads: int = Field(12, ge=1, description="Query heads.")
    num_kv_heads: int | None = Field(
        None, ge=1, description="Key/value heads (grouped-query attention); null: `num_heads`."
    )
    head_dim: int | None = Field(None, ge=2, description="Width of a head; null: hidden_size / num_heads.")
    intermediate_size: int | None = Field(
        None,
        ge=1,
        description="Width inside the MLP; null: 4 x hidden_size (gelu, relu2), 8/3 x up to a multiple of 64 (swiglu).",
    )
    context_length: int = Field(1024, ge=2, description="Tokens in a window, in training and in evaluation.")
    causal: bool = Field(
        True,
        description="Each token sees only the tokens before it. `false`: tokens on both sides, which only "
        "`train.objective: {kind: masked_diffusion}` trains, and it sets this (docs/any-order.md).",
    )
    position: Literal["learned", "rope"] = Field(
        "rope", description="Position encoding: learned absolute embeddings, or rotary embeddings."
    )
    norm: Literal["layernorm", "rmsnorm"] = Field(
        "rmsnorm", description="Normalisation before attention and before the MLP of each block."
    )
    activation: Literal["gelu", "swiglu", "relu2"] = Field(
        "swiglu", description="gelu: GPT-2's tanh approximation. relu2: the square of ReLU (arXiv:2109.08668)."
    )
    bias: bool = Field(False, description="Biases in linear layers and LayerNorms.")
    tied_embeddings: bool = Field(
        False, description="Use one matrix for the input embedding and the output projection."
    )
    qk_norm: bool = Field(False, description="RMSNorm over each query and key head before rotation (Qwen3).")
    value_residual: bool = Field(
        False,
        description="Mix the attention values of later layers with those of the first layer, by learned weights "
        "(arXiv:2410.17897).",
    )
    logit_softcap: float | None = Field(
        None, gt=0, description="Logits x become cap tanh(x / cap) (Gemma 2, arXiv:2408.00118); null: unchanged."
    )
    rope_theta: float = Field(10000.0, gt=0, description="Base of the rotary frequencies.")
    rope_scaling: RopeScaling | None = Field(
        None, description="Scale rotary frequencies for a longer context; `train.init_from` gives the weights."
    )
    norm_eps: float = Field(1e-5, gt=0, description="Epsilon of the norms.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout on embeddings, attention weights and residual branches."
    )
    init_std: float = Field(0.02, gt=0, description="Standard deviation of the initial weights.")
    zero_init: bool = Field(
        False,
        description="Initialise the last matrices of attention and MLP to zero, so that each block is an identity.",
    )
    mup_base_width: int | None = Field(
        None,
        ge=1,
        description="Maximal update parametrisation (arXiv:2203.03466): learning rate and initial weights are given "
        "for a model of this width, and are scaled to the actual width (docs/scaling.md); null: standard "
        "parametrisation.",
    )
    mup_base_head_dim: int | None = Field(
        None, ge=1, description="Width of a head at mup_base_width; null: as here, so that width grows by more heads."
    )
    vocab_size: int | None = Field(None, ge=2, description="Rows of the embedding; null: the tokenizer's size, padded.")
    vocab_multiple: int = Field(64, ge=1, description="Pad the vocabulary to a multiple of this, for speed.")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_family(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        defaults = _FAMILIES.get(values.get("family", "llama"), {})
        return {**defaults, **values}

    @model_validator(mode="after")
    def _shapes_fit(self) -> Model:
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}; "
                "set head_dim or change one"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.kv_heads}; change one of them"
            )
        if self.position == "rope" and self.head_width % 2:
            raise ValueError(
                f"position rope needs an even head width, not {self.head_width}; change head_dim, hidden_size or "
                f"num_heads"
            )
        if self.rope_scaling and (self.position != "rope" or self.head_width < 4):
            raise ValueError(
                f"rope_scaling needs `position: rope` (given: {self.position}) and a head width of at least 4 (given: "
                f"{self.head_width}); change them, or drop rope_scaling"
            )
        if self.mup_base_head_dim and not self.mup_base_width:
            raise ValueError("mup_base_head_dim needs mup_base_width; set that too, or drop it")
        return self

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads, with the default applied."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """Width of one head, with the default applied."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def mup_ratio(self) -> float:
        """Base width / width. muP multiplies logits and AdamW's rate of the blocks' matrices by it; 1 without muP."""
        return self.mup_base_width / self.hidden_size if self.mup_base_width else 1.0

    @property
    def query_scale(self) -> float:
        """muP's multiplier of queries, in addition to 1 / sqrt(E).

        Scores become proportional to q k / E, and equal the standard ones at the base head width.
        """
        return math.sqrt(self.mup_base_head_dim / self.head_width) if self.mup_base_head_dim else 1.0

    @property
    def mlp_width(self) -> int:
        """Width inside the MLP, with the default applied.

        The default of swiglu keeps the parameter count of gelu (Shazeer 2020, arXiv:2002.05202).
        """
        if self.intermediate_size:
            return self.intermediate_size
        if self.activation != "swiglu":
            return 4 * self.hidden_size
        return -(-8 * self.hidden_size // 3 // 64) * 64 if self.hidden_size >= 64 else 3 * self.hidden_size

    def padded_vocab(self, tokenizer_size: int) -> int:
        """Returns the embedding rows for a tokenizer of this size; raises `ValueError` if `vocab_size` is too small."""
        if self.vocab_size is None:
            return -(-tokenizer_size // self.vocab_multiple) * self.vocab_multiple
        if self.vocab_size < tokenizer_size:
            raise ValueError(
                f"model.vocab_size is {self.vocab_size}, but the tokenizer has {tokenizer_size} tokens; "
                "raise it or leave it null"
            )
        return self.vocab_size

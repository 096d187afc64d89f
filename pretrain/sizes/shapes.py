"""Gives the shape of every parameter from the settings alone, to compare before memory is asked for."""

from __future__ import annotations

from collections.abc import Iterator

from configs.schema.model import Model

# A rotation table has a row for every position and no weight bounds it: this much is always allowed.
_ROTATION_BYTES = 2**31


def parameter_shapes(config: Model, rows: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each parameter of `Transformer(config, rows)`, in its order; one at a time, without torch."""
    width, heads = config.hidden_size, config.num_heads * config.head_width
    qkv = heads + 2 * config.kv_heads * config.head_width
    norm_bias = config.bias and config.norm == "layernorm"
    up = config.mlp_width * (2 if config.activation == "swiglu" else 1)

    def linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (outputs, inputs)
        if config.bias:
            yield f"{name}.bias", (outputs,)

    def norm(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (width,)
        if norm_bias:
            yield f"{name}.bias", (width,)

    yield "embed.weight", (rows, width)
    if config.position == "learned":
        yield "position.weight", (config.context_length, width)
    for layer in range(config.num_layers):
        here = f"blocks.{layer}"
        yield from norm(f"{here}.attention_norm")
        yield from linear(f"{here}.attention.qkv", width, qkv)
        yield from linear(f"{here}.attention.out", heads, width)
        if config.qk_norm:
            yield f"{here}.attention.q_norm.weight", (config.head_width,)
            yield f"{here}.attention.k_norm.weight", (config.head_width,)
        if config.value_residual and layer:
            yield f"{here}.attention.value_mix.weight", (1,)
        yield from norm(f"{here}.mlp_norm")
        yield from linear(f"{here}.mlp.up", width, up)
        yield from linear(f"{here}.mlp.down", config.mlp_width, width)
    yield from norm("norm")
    if not config.tied_embeddings:
        yield "lm_head.weight", (rows, width)


def check_context(config: Model, weight_bytes: int, key: str) -> None:
    """Raises `ValueError` naming `key` when the rotation table would dwarf the weights (fp32, `weight_bytes`)."""
    table = 0 if config.position == "learned" else 8 * config.context_length * config.head_width
    if table > max(_ROTATION_BYTES, weight_bytes):
        raise ValueError(
            f"{key} is {config.context_length:,}: the table of rotary positions alone would take {table / 1e9:,.0f} GB "
            f"for {weight_bytes / 1e9:,.2f} GB of weights; it is damaged, or give it a lower value"
        )

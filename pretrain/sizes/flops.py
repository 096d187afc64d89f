"""Counts parameters and floating-point operations of a model from the recipe's `model` section. Needs no torch.

Letters of shapes as in `pretrain.model.transformer`.
"""

from __future__ import annotations

from typing import NamedTuple

from configs.schema.model import Model


class ParameterCount(NamedTuple):
    """`non_embedding` leaves out token and position embeddings and an untied head (Kaplan et al., arXiv:2001.08361)."""

    total: int
    non_embedding: int


def block_parameters(config: Model) -> int:
    """Parameters of one block: attention, MLP, and the norms before them."""
    width, (qkv, _, up, _) = config.hidden_size, _block_widths(config)
    biases = (qkv + width + up + width) if config.bias else 0
    norms = 2 * norm_parameters(config) + (2 * config.head_width if config.qk_norm else 0)
    return block_weights(config) + biases + norms


def block_weights(config: Model) -> int:
    """Elements of the matrices of one block's linear layers."""
    return config.hidden_size * sum(_block_widths(config))


def _block_widths(config: Model) -> tuple[int, int, int, int]:
    """The sides, beside the residual stream's, of a block's matrices: qkv, out, up, down."""
    inner, mlp = config.num_heads * config.head_width, config.mlp_width
    qkv = inner + 2 * config.kv_heads * config.head_width
    return qkv, inner, mlp * (2 if config.activation == "swiglu" else 1), mlp


def norm_parameters(config: Model) -> int:
    """Parameters of one norm over the residual stream."""
    return config.hidden_size * (2 if config.norm == "layernorm" and config.bias else 1)


def count_parameters(config: Model, rows: int) -> ParameterCount:
    """Counts each parameter once, a tied matrix too; `rows` of the embedding, padding included."""
    body = config.num_layers * block_parameters(config) + norm_parameters(config)
    body += config.num_layers - 1 if config.value_residual else 0
    tables = rows * config.hidden_size * (1 if config.tied_embeddings else 2)
    positions = config.context_length * config.hidden_size if config.position == "learned" else 0
    return ParameterCount(body + tables + positions, body)


def flops_per_token(config: Model, rows: int, context_length: int | None = None) -> float:
    """Floating-point operations of forward and backward per token: 6 N + 12 L H E T.

    PaLM (arXiv:2204.02311), appendix B. N counts the weights that are multiplied, the head among them, and not the
    looked-up tables. T is `context_length` (None: the recipe's). As there, attention counts all T x T pairs although
    half are masked, and recomputation counts nothing: this is the numerator of model FLOPs utilisation.
    """
    length = context_length or config.context_length
    multiplied = count_parameters(config, rows).non_embedding + rows * config.hidden_size
    return 6.0 * multiplied + 12.0 * config.num_layers * config.num_heads * config.head_width * length


def float8_share(config: Model, rows: int) -> float:
    """Share of `flops_per_token` that `train.precision: fp8` makes in fp8: the blocks' linear layers."""
    return 6.0 * config.num_layers * block_weights(config) / flops_per_token(config, rows)

"""Computes one new token for each of many texts: the blocks of `pretrain.model.transformer` for a single position.

The same function as the model's own forward with a cache (tests compare every setting), with less work around it. Rows
need no common length: row r has `lengths[r]` tokens in the cache, from column 0 on, so a row can join or leave without
moving the others, and no column is padding. All shapes depend on the number of rows and columns alone, nothing waits
for the device, and the step can be captured in a CUDA graph or compiled.

On a CPU in fp32 a step of a small model is mostly overhead, so there it takes fewer and other operations
(docs/benchmarks.md, "Generation"): RMSNorm in four, attention of one query as two batched products, and copies of small
matrices laid out for products with few rows.

Letters of shapes as there; R rows, C columns that the cache has room for, S columns that are looked at, G = H/K queries
that share a key.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema.model import Model
from configs.schema.reading_direction import needs_causal
from pretrain.model.attention import HeadNorm
from pretrain.model.transformer import Block, Transformer

Step = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # tokens, lengths, keys, values -> logits
StepWrapper = Callable[[Step], Step]  # makes a faster one that does the same
# Above, a matrix does not stay in a core's cache, and another layout of it is no faster.
_COPIED_BYTES = 2**21
# The head's matrix is the largest, and up to here the copy is faster for a few rows.
_COPIED_HEAD_BYTES, _FEW_ROWS = 2**24, 8


def is_lean(x: Tensor) -> bool:
    """Tells whether the operations for a CPU in fp32 are taken."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def compiled(step: Step) -> Step:
    """The step compiled by torch, on a GPU as one CUDA graph: for `Player(wrap=compiled)`.

    It takes up to a minute, and pays where the step is launches more than work: large batches of small models on a GPU.
    """
    made: Step = torch.compile(step, fullgraph=True, dynamic=False, mode="reduce-overhead")
    return made


class _Norm:
    """A LayerNorm or RMSNorm of vectors (…, D)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, eps: float, is_rms: bool) -> None:
        width = weight.shape[-1]
        self.weight, self.bias, self.eps, self.is_rms = weight, bias, eps, is_rms
        self.lean = is_rms and is_lean(weight)
        self.scaled = weight * math.sqrt(width)
        self.floor = torch.tensor(math.sqrt(width * eps), dtype=weight.dtype, device=weight.device)

    @classmethod
    def of(cls, module: nn.Module, config: Model) -> _Norm:
        weight, bias = module.weight, getattr(module, "bias", None)
        assert isinstance(weight, Tensor)
        return cls(weight, bias, config.norm_eps, config.norm == "rmsnorm")

    def __call__(self, x: Tensor) -> Tensor:
        if not self.is_rms:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        if self.lean:  # w x / sqrt(mean(x²) + eps), with both sides times sqrt(D)
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            return x * self.scaled / torch.hypot(length, self.floor)
        if self.weight.dim() == 1:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape[-1:], None, self.eps) * self.weight


class _Matrix:
    """A linear layer of rows (R, inputs)."""

    def __init__(self, module: nn.Module, most_bytes: int = _COPIED_BYTES) -> None:
        weight, self.bias = module.weight, getattr(module, "bias", None)
        assert isinstance(weight, Tensor)
        self.module = module
        size = weight.numel() * weight.element_size()
        # A product with a few rows is up to twice as fast when the rows of the right-hand side lie one by one.
        copied = is_lean(weight) and size <= most_bytes
        self.copy = weight.detach().t().contiguous() if copied else None  # (inputs, outputs)
        self.most_rows = None if size <= _COPIED_BYTES else _FEW_ROWS  # for which the copy is taken

    def __call__(self, x: Tensor) -> Tensor:
        if self.copy is None or (self.most_rows is not None and len(x) > self.most_rows):
            out: Tensor = self.module(x)
            return out
        return torch.mm(x, self.copy) if self.bias is None else torch.addmm(self.bias, x, self.copy)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        if self.copy is None:
            out: Tensor = residual + self.module(x)
            return out
        out = torch.addmm(residual, x, self.copy)
        return out if self.bias is None else out.add_(self.bias)


@dataclass(frozen=True)
class _Layer:
    """The weights of one block."""

    attention_norm: _Norm
    qkv: _Matrix
    head_norm: _Norm | None  # of queries and keys together, weight (H+K, E)
    value_mix: Tensor | None
    out: _Matrix
    mlp_norm: _Norm
    up: _Matrix
    down: _Matrix

    @classmethod
    def of(cls, block: Block, config: Model) -> _Layer:
        attention, head_norm = block.attention, None
        if isinstance(attention.q_norm, HeadNorm) and isinstance(attention.k_norm, HeadNorm):
            of_q, of_k = attention.q_norm.weight.detach(), attention.k_norm.weight.detach()
            of_heads = torch.stack([of_q] * config.num_heads + [of_k] * config.kv_heads)
            head_norm = _Norm(of_heads, None, config.norm_eps, is_rms=True)
        mix = attention.value_mix
        return cls(
            _Norm.of(block.attention_norm, config),
            _Matrix(attention.qkv),
            head_norm,
            None if mix is None else mix.weight,
            _Matrix(attention.out),
            _Norm.of(block.mlp_norm, config),
            _Matrix(block.mlp.up),
            _Matrix(block.mlp.down),
        )


class _Places(NamedTuple):
    """Where the new tokens of all rows stand; the same for every layer."""

    rotation: tuple[Tensor, Tensor] | None  # cos and sin, (R, 1, E), or (E,) where all rows have one length
    rows: Tensor | None  # (R,): 0, 1, …; None where all rows have one length
    lengths: Tensor  # (R,)
    seen: Tensor | None  # bool (R, 1, 1, S); None: every row sees all columns
    scores: Tensor  # what lean attention adds to its scores: (R K, G, S), or a number to be ignored


class _Store(NamedTuple):
    """One layer of the cache. Views of all layers are made together, in a few calls."""

    keys: Tensor  # (R, K, S, E)
    values: Tensor
    key_products: Tensor  # the same keys as lean attention multiplies them, (R K, E, S)
    value_products: Tensor  # (R K, S, E)
    new_key: Tensor  # (R, K, E): the last column
    new_value: Tensor

    @classmethod
    def of_layers(cls, keys: Tensor, values: Tensor) -> list[_Store]:
        """Of (L, R, K, S, E), whose rows and heads are one dimension without a copy."""
        return [
            cls(*views)
            for views in zip(
                keys.unbind(),
                values.unbind(),
                keys.flatten(1, 2).transpose(2, 3).unbind(),
                values.flatten(1, 2).unbind(),
                keys.select(3, -1).unbind(),
                values.select(3, -1).unbind(),
                strict=True,
            )
        ]


class Decoder:
    """Computes logits of the tokens after the next ones.

    Made of a model whose weights stay as they are while it is used: some are copied.
    """

    @torch.no_grad()
    def __init__(self, model: Transformer) -> None:
        assert not model.training, "call model.eval() first: dropout has no place in generation"
        needs_causal(model.config, "decoding token by token")
        self._model, self.config = model, model.config
        self._layers = [_Layer.of(block, model.config) for block in model.blocks if isinstance(block, Block)]
        self._final = _Norm.of(model.norm, model.config)
        self._head = _Matrix(model.lm_head or model.embed, _COPIED_HEAD_BYTES)
        # Rotation keeps lengths, so muP's factor of the queries can go into the scores.
        self._scale = model.config.query_scale / math.sqrt(model.config.head_width)
        self._lean = is_lean(model.embed.weight)
        self._ignored = torch.zeros(1, 1, 1, device=model.embed.weight.device)

    def __call__(
        self, tokens: Tensor, lengths: Tensor, keys: Tensor, values: Tensor, column: int | None = None
    ) -> Tensor:
        """Appends one token to each row.

        Args:
            tokens: (R,) int64.
            lengths: (R,) int64, tokens of each row in the cache, below S: the new one goes to that column.
            keys: (L, R, K, S, E), of the cache or a view of its first rows and columns: written in place.
            values: as keys.
            column: the length of all rows, where they have one and it is S - 1: then nothing needs a mask.

        Returns:
            (R, V) logits of the token after the new one.
        """
        model, config = self._model, self.config
        x = F.embedding(tokens, model.embed.weight)  # (R, D)
        if model.position is not None:
            x = x + F.embedding(lengths, model.position.weight)
        places = self._places(lengths, keys, column)
        first_values: Tensor | None = None
        for layer, store in zip(self._layers, _Store.of_layers(keys, values), strict=True):
            q, k, v = self._heads(layer, x, places.rotation)
            if layer.value_mix is not None and first_values is not None:
                v = v.lerp(first_values, layer.value_mix.to(v.dtype))
            elif config.value_residual:
                first_values = v
            y = self._attend(q, k, v, store, places)
            x = layer.out.add_to(x, y)
            x = layer.down.add_to(x, self._activated(layer.up(layer.mlp_norm(x))))
        return model.head(self._final(x), self._head)

    def _places(self, lengths: Tensor, keys: Tensor, column: int | None) -> _Places:
        rotation = None if self._model.position is not None else self._rotation(lengths, column, keys.dtype)
        if column is not None:
            return _Places(rotation, None, lengths, None, self._ignored)
        rows = torch.arange(len(lengths), device=lengths.device)
        columns = torch.arange(keys.shape[3], device=lengths.device)
        seen = (columns <= lengths.unsqueeze(-1))[:, None, None]  # (R, 1, 1, S)
        if not self._lean:
            return _Places(rotation, rows, lengths, seen, self._ignored)
        scores = torch.zeros_like(seen, dtype=keys.dtype).masked_fill_(~seen, -math.inf)
        kv_heads, groups = self.config.kv_heads, self.config.num_heads // self.config.kv_heads
        scores = scores.expand(-1, kv_heads, groups, -1).reshape(-1, groups, keys.shape[3])
        return _Places(rotation, rows, lengths, seen, scores)

    def _rotation(self, lengths: Tensor, column: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        cos, sin = self._model.rope_cos, self._model.rope_sin
        if column is not None:
            return cos[column].to(dtype), sin[column].to(dtype)
        return F.embedding(lengths, cos).unsqueeze(1).to(dtype), F.embedding(lengths, sin).unsqueeze(1).to(dtype)

    def _heads(self, layer: _Layer, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (R, H, E), keys (R, K, E) and values (R, K, E) of the new tokens."""
        heads, kv_heads, width = self.config.num_heads, self.config.kv_heads, self.config.head_width
        qkv = layer.qkv(layer.attention_norm(x)).view(len(x), -1, width)  # (R, H+2K, E)
        qk, v = qkv.split_with_sizes((heads + kv_heads, kv_heads), dim=1)
        if layer.head_norm is not None:
            qk = layer.head_norm(qk.to(layer.head_norm.weight.dtype)).to(v.dtype)
        if rotation is not None:
            cos, sin = rotation
            qk = torch.addcmul(qk * cos, qk.roll(width // 2, dims=-1), sin)
        q, k = qk.split_with_sizes((heads, kv_heads), dim=1)
        return q, k, v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, store: _Store, places: _Places) -> Tensor:
        """Stores keys and values of the new tokens, then attends to all: (R, H E)."""
        rows, kv_heads, _, width = store.keys.shape
        groups = q.shape[1] // kv_heads
        if places.rows is None:
            store.new_key.copy_(k)
            store.new_value.copy_(v)
        else:
            store.keys[places.rows, :, places.lengths] = k.to(store.keys.dtype)
            store.values[places.rows, :, places.lengths] = v.to(store.values.dtype)
        # The queries that share a key stand where other queries of the text would.
        if self._lean:
            queries, beta = q.reshape(rows * kv_heads, groups, width), 0 if places.seen is None else 1
            scores = torch.baddbmm(places.scores, queries, store.key_products, beta=beta, alpha=self._scale)
            return torch.bmm(scores.softmax(dim=-1), store.value_products).view(rows, -1)
        q = q.reshape(rows, kv_heads, groups, width)
        y = F.scaled_dot_product_attention(q, store.keys, store.values, attn_mask=places.seen, scale=self._scale)
        return y.reshape(rows, -1)

    def _activated(self, x: Tensor) -> Tensor:
        if self.config.activation == "swiglu":
            gate, up = x.chunk(2, dim=-1)
            return F.silu(gate).mul_(up)
        if self.config.activation == "relu2":
            return F.relu(x).square()
        return F.gelu(x, approximate="tanh")

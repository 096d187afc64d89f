"""Computes one new token for each of many texts: the blocks of `pretrain.model.transformer` for a single position.

The same function as the model's own forward with a cache (tests compare every setting), with less work around it. Rows
need no common length: row r has `lengths[r]` tokens in the cache, from column 0 on, so a row can join or leave without
moving the others, and no column is padding. All shapes depend on the number of rows and columns alone, nothing waits
for the device, and the step can be captured in a CUDA graph or compiled.

Letters of shapes as there; R rows, C columns that the cache has room for, S columns that are looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema.model import Model
from pretrain.model.attention import HeadNorm
from pretrain.model.transformer import Block, Transformer


@dataclass(frozen=True)
class _Norm:
    """A LayerNorm or RMSNorm, with what the faster form of RMSNorm needs."""

    weight: Tensor
    bias: Tensor | None
    eps: float
    is_rms: bool
    scaled: Tensor  # weight x sqrt(D)
    floor: Tensor  # sqrt(D eps), a scalar

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, eps: float, is_rms: bool) -> _Norm:
        width = weight.shape[-1]
        floor = torch.tensor(math.sqrt(width * eps), dtype=weight.dtype, device=weight.device)
        return cls(weight, bias, eps, is_rms, weight * math.sqrt(width), floor)

    def __call__(self, x: Tensor) -> Tensor:
        """(…, D) -> (…, D), in the dtype of the weight, as the modules do."""
        if not self.is_rms:
            return F.layer_norm(x, (self.weight.shape[-1],), self.weight, self.bias, self.eps)
        if x.device.type == "cpu" and x.dtype == torch.float32 == self.weight.dtype:
            # w x / sqrt(mean(x²) + eps) in four operations; torch's own takes eight small ones on a CPU.
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            return x * self.scaled / torch.hypot(length, self.floor)
        if self.weight.dim() == 1:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape[-1:], None, self.eps) * self.weight


@dataclass(frozen=True)
class _Layer:
    """The weights of one block. Matrices are the module's own; those of the norms are copies."""

    attention_norm: _Norm
    qkv: nn.Linear
    head_norm: _Norm | None  # of queries and keys together, (H+K, E)
    value_mix: Tensor | None
    out: nn.Linear
    mlp_norm: _Norm
    up: nn.Linear
    down: nn.Linear

    @classmethod
    def of(cls, block: Block, config: Model) -> _Layer:
        attention, head_norm = block.attention, None
        if isinstance(attention.q_norm, HeadNorm) and isinstance(attention.k_norm, HeadNorm):
            of_q, of_k = attention.q_norm.weight.detach(), attention.k_norm.weight.detach()
            of_heads = torch.stack([of_q] * config.num_heads + [of_k] * config.kv_heads)
            head_norm = _Norm.of(of_heads, None, config.norm_eps, is_rms=True)
        mix = attention.value_mix
        return cls(
            _norm(block.attention_norm, config),
            attention.qkv,
            head_norm,
            None if mix is None else mix.weight,
            attention.out,
            _norm(block.mlp_norm, config),
            block.mlp.up,
            block.mlp.down,
        )


def _norm(module: nn.Module, config: Model) -> _Norm:
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, Tensor)
    return _Norm.of(weight, bias, config.norm_eps, config.norm == "rmsnorm")


class Decoder:
    """Computes logits of the tokens after the next ones.

    Made of a model whose weights stay as they are while it is used: the norms' weights are copied.
    """

    @torch.no_grad()
    def __init__(self, model: Transformer) -> None:
        assert not model.training, "call model.eval() first: dropout has no place in generation"
        self._model, self.config = model, model.config
        self._layers = [_Layer.of(block, model.config) for block in model.blocks if isinstance(block, Block)]
        self._final = _norm(model.norm, model.config)
        # Rotation keeps lengths, so muP's factor of the queries can go into the scores.
        self._scale = model.config.query_scale / math.sqrt(model.config.head_width)

    def __call__(self, tokens: Tensor, lengths: Tensor, keys: Tensor, values: Tensor, even: bool = False) -> Tensor:
        """Appends one token to each row.

        Args:
            tokens: (R,) int64.
            lengths: (R,) int64, tokens of each row in the cache, at most C - 1: the new one goes to that column.
            keys: (L, R, K, C, E), or a view of more rows and columns: written in place.
            values: as keys.
            even: all rows have S - 1 tokens, S the columns of `keys`, so that nothing needs a mask.

        Returns:
            (R, V) logits of the token after the new one.
        """
        model, config = self._model, self.config
        x = F.embedding(tokens, model.embed.weight)  # (R, D)
        rotation = None
        if model.position is not None:
            x = x + F.embedding(lengths, model.position.weight)
        else:
            rotation = F.embedding(lengths, model.rope_cos), F.embedding(lengths, model.rope_sin)  # (R, E) each
        columns = torch.arange(keys.shape[3], device=tokens.device)
        mask = None if even else (columns <= lengths.unsqueeze(-1))[:, None, None]  # (R, 1, 1, S)
        rows = torch.arange(len(tokens), device=tokens.device)
        first_values: Tensor | None = None
        for number, layer in enumerate(self._layers):
            q, k, v = self._heads(layer, x, rotation)
            if layer.value_mix is not None and first_values is not None:
                v = v.lerp(first_values, layer.value_mix.to(v.dtype))
            elif config.value_residual:
                first_values = v
            keys[number, rows, :, lengths] = k.to(keys.dtype)
            values[number, rows, :, lengths] = v.to(values.dtype)
            # The queries that share a key head stand where other queries of the text would: (R, K, H/K, E).
            y = F.scaled_dot_product_attention(q, keys[number], values[number], attn_mask=mask, scale=self._scale)
            x = x + layer.out(y.flatten(1))
            x = x + self._mlp(layer, layer.mlp_norm(x))
        return model.head(self._final(x))

    def _heads(self, layer: _Layer, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (R, K, H/K, E), keys (R, K, E) and values (R, K, E) of the new tokens."""
        heads, kv_heads, width = self.config.num_heads, self.config.kv_heads, self.config.head_width
        qkv = layer.qkv(layer.attention_norm(x)).view(len(x), -1, width)  # (R, H+2K, E)
        qk, v = qkv.split([heads + kv_heads, kv_heads], dim=1)
        if layer.head_norm is not None:
            qk = layer.head_norm(qk.to(layer.head_norm.weight.dtype)).to(v.dtype)
        if rotation is not None:
            cos, sin = (table.unsqueeze(1).to(qk.dtype) for table in rotation)
            qk = torch.addcmul(qk * cos, qk.roll(width // 2, dims=-1), sin)
        q, k = qk.split([heads, kv_heads], dim=1)
        return q.unflatten(1, (kv_heads, heads // kv_heads)), k, v

    def _mlp(self, layer: _Layer, x: Tensor) -> Tensor:
        x = layer.up(x)
        if self.config.activation == "swiglu":
            gate, up = x.chunk(2, dim=-1)
            x = F.silu(gate) * up
        elif self.config.activation == "relu2":
            x = F.relu(x).square()
        else:
            x = F.gelu(x, approximate="tanh")
        out: Tensor = layer.down(x)
        return out

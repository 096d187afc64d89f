"""The model: a decoder-only transformer, with the GPT-2 and the Llama families as settings of the same blocks.

Shapes, in every comment:
    B sequences   T new tokens   S tokens so far (cached and new)   V rows of the vocabulary (padded)   L layers
    D width of the residual stream   H query heads   K key/value heads   E width of a head   F width inside the MLP

Sources: GPT-2 (Radford et al. 2019), Llama 2 (arXiv:2307.09288), RoPE (arXiv:2104.09864), RMSNorm (arXiv:1910.07467),
SwiGLU (arXiv:2002.05202), grouped queries (arXiv:2305.13245), query/key norm as in Qwen3 (arXiv:2505.09388).
Weights are compatible with Hugging Face's layout through `pretrain.huggingface`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from configs.model_section import Model

Rotation = tuple[Tensor, Tensor]  # cos and signed sin, each (T, 1, E) or (B, T, 1, E)


class ParameterCount(NamedTuple):
    """`non_embedding` leaves out token and position embeddings and an untied head (Kaplan et al., arXiv:2001.08361)."""

    total: int
    non_embedding: int


class KVCache:
    """Keys and values of all layers, so that a new token costs one column of attention.

    Rows of different lengths are padded on the left: `padding[b]` columns of row b are not text. They are never
    attended to, and the row's positions count from its first real token: it gives the same logits as it would alone.
    """

    def __init__(self, model: Transformer, batch: int, capacity: int, padding: Tensor | None = None) -> None:
        """Makes room for `capacity` columns; `padding` (B,) int64 on the model's device, or None for no padding."""
        config, weight = model.config, model.embed.weight
        shape = (config.num_layers, batch, config.kv_heads, capacity, config.head_width)
        self.keys = torch.empty(shape, dtype=weight.dtype, device=weight.device)  # (L, B, K, capacity, E)
        self.values = torch.empty_like(self.keys)
        self.padding = padding
        self.length = 0  # columns in use

    @property
    def capacity(self) -> int:
        """Columns there is room for."""
        return self.keys.shape[3]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (B, K, T, E) behind the columns in use; returns all columns of this layer, (B, K, S, E)."""
        end = self.length + keys.shape[2]
        assert end <= self.capacity, f"cache of {self.capacity} columns cannot hold {end}"
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def positions(self, columns: Tensor) -> Tensor:
        """Positions in the text of these columns: (T,) without padding, else (B, T); padding columns get 0."""
        return columns if self.padding is None else (columns - self.padding[:, None]).clamp(min=0)

    def mask(self, columns: Tensor) -> Tensor | None:
        """Who may attend to whom: bool (T, S) or (B, 1, T, S); None where plain causal attention says the same."""
        new = columns.shape[0]
        if self.padding is None and (self.length == 0 or new == 1):
            return None
        query, key = columns[:, None], torch.arange(self.length + new, device=columns.device)
        causal = key <= query  # (T, S)
        if self.padding is None:
            return causal
        # A padding column attends to itself: a row of the softmax with nothing in it would be NaN.
        return ((causal & (key >= self.padding[:, None, None])) | (key == query)).unsqueeze(1)

    def select(self, rows: list[int]) -> None:
        """Keeps these rows of the batch, in this order."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        if self.padding is not None:
            self.padding = self.padding[rows]


class Embedding(nn.Module):
    """The token matrix (V, D). Token ids give their rows; hidden states give logits, when input and output are tied.

    One module for both directions, because ZeRO-3 gathers a weight only inside the forward of the module that owns it.
    """

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) if x.is_floating_point() else F.embedding(x, self.weight)


def make_norm(config: Model) -> nn.Module:
    """The normalisation before each part of a block; a bias only in LayerNorm."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.bias)


def rotation_table(config: Model, device: torch.device | None = None) -> Rotation:
    """cos and sin of position x frequency for all positions, fp32 (context_length, E).

    Half-split layout, as in Hugging Face: component i turns with component i + E/2, so both halves hold the same
    frequencies. The first half of sin is negated: `rotate` needs no sign of its own.
    """
    exponent = torch.arange(0, config.head_width, 2, dtype=torch.float32, device=device) / config.head_width
    frequency = 1.0 / (config.rope_theta**exponent)  # (E/2,)
    angle = torch.outer(torch.arange(config.context_length, dtype=torch.float32, device=device), frequency)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotary position embedding of x (B, T, heads, E)."""
    cos, sin = rotation
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


class Attention(nn.Module):
    """Causal self-attention with grouped queries; one matrix for queries, keys and values, in this order."""

    def __init__(self, config: Model, layer: int) -> None:
        super().__init__()
        self.layer, self.dropout, self.width = layer, config.dropout, config.head_width
        self.heads, self.kv_heads = config.num_heads, config.kv_heads
        self.qkv = nn.Linear(config.hidden_size, (self.heads + 2 * self.kv_heads) * self.width, bias=config.bias)
        self.out = nn.Linear(self.heads * self.width, config.hidden_size, bias=config.bias)
        self.q_norm = nn.RMSNorm(self.width, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(self.width, eps=config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, rotation: Rotation | None, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        qkv = self.qkv(x).unflatten(-1, (-1, self.width))  # (B, T, H+2K, E)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, E), (B, K, T, E) twice
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, K, S, E)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None and q.shape[2] == k.shape[2],
            enable_gqa=self.kv_heads != self.heads,
        )  # (B, H, T, E)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """GELU in its tanh form (GPT-2), or SwiGLU with gate and up in one matrix, in this order (Llama)."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.gated = config.activation == "swiglu"
        self.up = nn.Linear(config.hidden_size, config.mlp_width * (2 if self.gated else 1), bias=config.bias)
        self.down = nn.Linear(config.mlp_width, config.hidden_size, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = self.up(x)  # (B, T, F) or (B, T, 2F)
        if self.gated:
            gate, up = x.chunk(2, dim=-1)
            x = F.silu(gate) * up
        else:
            x = F.gelu(x, approximate="tanh")
        out: Tensor = self.down(x)
        return out


class Block(nn.Module):
    """Attention, then MLP, each normalised before and added to the residual stream."""

    def __init__(self, config: Model, layer: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, rotation: Rotation | None, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        y = self.attention(self.attention_norm(x), rotation, mask, cache)
        x = x + F.dropout(y, self.dropout, self.training)
        return x + F.dropout(self.mlp(self.mlp_norm(x)), self.dropout, self.training)


class Transformer(nn.Module):
    """Token ids -> logits.

    On the meta device it costs no memory (`with torch.device("meta"): Transformer(...)`); `materialize` then gives it
    memory, and `init_weights` or a loader values.
    """

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: Model, vocab_size: int) -> None:
        """`vocab_size` is the number of rows of the embedding, padding included (`config.padded_vocab`)."""
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.activation_checkpointing = False  # recompute each block in the backward pass instead of storing it
        learned = config.position == "learned"
        # On the meta device first: torch's own initial values would cost time and random numbers.
        device = torch.get_default_device()
        with torch.device("meta"):
            self.embed = Embedding(vocab_size, config.hidden_size)
            self.position = nn.Embedding(config.context_length, config.hidden_size) if learned else None
            self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
            self.norm = make_norm(config)
            self.lm_head = None if config.tied_embeddings else nn.Linear(config.hidden_size, vocab_size, bias=False)
        if not learned:
            for name in ("rope_cos", "rope_sin"):
                self.register_buffer(name, torch.empty(0, device="meta"), persistent=False)
        self.materialize(device)
        self.init_weights()

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V), in the dtype of the weights, of the token after each of `tokens` (B, T) int64.

        With a cache, `tokens` continue what it holds, and are added to it.

        Raises:
            ValueError: when the tokens, with those in the cache, are more than `context_length`.
        """
        return self.head(self.backbone(tokens, cache))

    def backbone(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Hidden states (B, T, D) after the last norm: all of the model but the projection to the vocabulary."""
        start = cache.length if cache is not None else 0
        end = start + tokens.shape[1]
        if end > self.config.context_length:
            raise ValueError(f"{end} tokens do not fit model.context_length {self.config.context_length}; pass fewer")
        columns = torch.arange(start, end, device=tokens.device)  # (T,)
        positions = columns if cache is None else cache.positions(columns)  # (T,) or (B, T)
        mask = None if cache is None else cache.mask(columns)
        x = self.embed(tokens)  # (B, T, D)
        if self.position is not None:
            x = x + self.position(positions)
        rotation = self._rotation(positions, x.dtype) if self.position is None else None
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, rotation, use_reentrant=False)
            else:
                x = block(x, rotation, mask, cache)
        if cache is not None:
            cache.length = end
        out: Tensor = self.norm(x)
        return out

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (…, V) of hidden states (…, D), so that a loss can take them a few positions at a time."""
        out: Tensor = self.embed(hidden) if self.lm_head is None else self.lm_head(hidden)
        return out

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        # Rounded to the activations' dtype only here, from angles computed in fp32: the same as Hugging Face does.
        return self.rope_cos[positions].unsqueeze(-2).to(dtype), self.rope_sin[positions].unsqueeze(-2).to(dtype)

    def materialize(self, device: torch.device | str) -> Transformer:
        """Leaves the meta device: memory for every weight (values undefined) and the rotation table; returns self."""
        self.to_empty(device=device)
        if self.position is None:
            self.rope_cos, self.rope_sin = rotation_table(self.config, torch.device(device))
        return self

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draws all weights from torch's global generator.

        | weights                             | values                          | source                              |
        |-------------------------------------|---------------------------------|-------------------------------------|
        | token and position embeddings, head | N(0, init_std)                  | GPT-2, as in Hugging Face           |
        | attention.qkv, mlp.up               | N(0, init_std)                  | GPT-2                               |
        | attention.out, mlp.down             | N(0, init_std / sqrt(2 layers)) | GPT-2, section 2.3: residual layers |
        | biases                              | 0                               | GPT-2                               |
        | norms                               | weight 1, bias 0                | GPT-2                               |

        init_std is 0.02 unless the recipe says otherwise. The Llama family gets the same: its papers do not say.
        """
        for name, parameter in self.named_parameters():
            self.init_parameter(name, parameter)

    def init_parameter(self, name: str, parameter: Tensor) -> None:
        """Fills one parameter by the table of `init_weights` (by itself where weights are gathered one at a time)."""
        std = self.config.init_std
        if name.endswith(("attention.out.weight", "mlp.down.weight")):
            std /= math.sqrt(2 * self.config.num_layers)
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name.endswith("norm.weight"):
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=std)

    def parameter_count(self) -> ParameterCount:
        """Counts each parameter once, a tied matrix too."""
        total = sum(parameter.numel() for parameter in self.parameters())
        tables = [module for module in (self.embed, self.position, self.lm_head) if module is not None]
        return ParameterCount(total, total - sum(p.numel() for module in tables for p in module.parameters()))

    def flops_per_token(self, context_length: int | None = None) -> float:
        """Floating-point operations of forward and backward per token: 6 N + 12 L H E T.

        PaLM (arXiv:2204.02311), appendix B. N counts the weights that are multiplied, the head among them, and not the
        looked-up tables. T is `context_length` (None: the recipe's). As there, attention counts all T x T pairs
        although half are masked, and recomputation counts nothing: this is the numerator of model FLOPs utilisation.
        """
        config = self.config
        length = context_length or config.context_length
        multiplied = self.parameter_count().non_embedding + self.vocab_size * config.hidden_size
        return 6.0 * multiplied + 12.0 * config.num_layers * config.num_heads * config.head_width * length

"""Defines the model: a transformer of one stack of blocks, causal or reading both ways (`model.causal`).

The GPT-2 and the Llama families are settings of the same blocks.

Shapes, in every comment:
    B sequences   T new tokens   S tokens so far (cached and new)   V rows of the vocabulary (padded)   L layers
    D width of the residual stream   H query heads   K key/value heads   E width of a head   F width inside the MLP

Sources: GPT-2 (Radford et al. 2019), Llama 2 (arXiv:2307.09288), RoPE (arXiv:2104.09864), RMSNorm (arXiv:1910.07467),
SwiGLU (arXiv:2002.05202), grouped queries (arXiv:2305.13245), query/key norm as in Qwen3 (arXiv:2505.09388), squared
ReLU (arXiv:2109.08668), value residual (arXiv:2410.17897), soft-capped logits (arXiv:2408.00118), maximal update
parametrisation (muP, arXiv:2203.03466).
Weights are compatible with Hugging Face's layout through `pretrain.interchange.huggingface_import`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema.model import Model
from configs.schema.reading_direction import needs_causal
from pretrain.model.attention import Attention, Rotation, attends_by_products, rotation_table
from pretrain.model.cross_entropy import linear_cross_entropy
from pretrain.model.kv_cache import Cache, KVCache
from pretrain.model.log_probs import linear_log_probs
from pretrain.model.masking import Mask, document_mask, prefers_flex
from pretrain.model.meta_device import to_empty
from pretrain.model.plain_kernels import only_plain
from pretrain.model.recompute import run_block
from pretrain.model.sequence_group import SequenceGroup
from pretrain.sizes.flops import ParameterCount, flops_per_token
from pretrain.sizes.limits import chunk_positions


class Embedding(nn.Module):
    """A token matrix (V, D): token ids give their rows, hidden states logits, and with targets a loss.

    One module for all of it, because ZeRO-3 gathers a weight only inside the forward of the module that owns it, and
    input and output may share one.
    """

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, width))

    def forward(self, x: Tensor, loss: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        """Ids (…) -> (…, D); hidden states (…, D) -> logits (…, V), or `loss(x, weight)`."""
        if loss is not None:
            result: Tensor = loss(x, self.weight)
            return result
        return F.linear(x, self.weight) if x.is_floating_point() else F.embedding(x, self.weight)


def make_norm(config: Model) -> nn.Module:
    """The normalisation before each part of a block; a bias only in LayerNorm."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.bias)


class MLP(nn.Module):
    """GELU in its tanh form (GPT-2), squared ReLU, or SwiGLU with gate and up in one matrix, in this order (Llama)."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.activation = config.activation
        self.up = nn.Linear(
            config.hidden_size, config.mlp_width * (2 if self.activation == "swiglu" else 1), bias=config.bias
        )
        self.down = nn.Linear(config.mlp_width, config.hidden_size, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = self.up(x)  # (B, T, F) or (B, T, 2F)
        if self.activation == "swiglu":
            gate, up = x.chunk(2, dim=-1)
            x = F.silu(gate) * up
        elif self.activation == "relu2":
            x = F.relu(x).square()
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
        self,
        x: Tensor,
        rotation: Rotation | None,
        mask: Mask | None = None,
        cache: Cache | None = None,
        first_values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) -> (B, T, D), and the first layer's values where later ones mix them in."""
        y, first_values = self.attention(self.attention_norm(x), rotation, mask, cache, first_values)
        x = x + F.dropout(y, self.dropout, self.training)
        return x + F.dropout(self.mlp(self.mlp_norm(x)), self.dropout, self.training), first_values


def _products_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which the matrix products that follow are made."""
    device = x.device.type
    casts = device != "meta" and torch.is_autocast_enabled(device)  # the meta device has none
    return torch.get_autocast_dtype(device) if casts else x.dtype


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
        self.activation_checkpointing = "none"  # see `pretrain.model.recompute`
        self.sequence: SequenceGroup | None = None  # set by `pretrain.parallel.rows`
        learned = config.position == "learned"
        # On the meta device first: torch's own initial values would cost time and random numbers.
        device = torch.get_default_device()
        with torch.device("meta"):
            self.embed = Embedding(vocab_size, config.hidden_size)
            self.position = nn.Embedding(config.context_length, config.hidden_size) if learned else None
            self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
            self.norm = make_norm(config)
            self.lm_head = None if config.tied_embeddings else Embedding(vocab_size, config.hidden_size)
        if not learned:
            for name in ("rope_cos", "rope_sin"):
                self.register_buffer(name, torch.empty(0, device="meta"), persistent=False)
        self.materialize(device)
        self.init_weights()

    def forward(self, tokens: Tensor, cache: Cache | None = None, positions: Tensor | None = None) -> Tensor:
        """Logits (B, T, V), in the dtype of the weights, of the token after each of `tokens` (B, T) int64.

        A model with `causal: false` predicts the same token, and sees all `tokens` for it: what it is to predict must
        be masked among them. With a cache, `tokens` continue what it holds, and are added to it. With `positions` (B,
        T) int64, rows hold documents side by side, and each token sees its own document alone
        (`pretrain.model.masking`); not with a cache.

        Raises:
            ValueError: when the tokens, with those in the cache, are more than `context_length`.
        """
        return self.head(self.backbone(tokens, cache, positions))

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for `batch` rows of up to `capacity` columns.

        Raises:
            ValueError: for a model that reads both ways: the keys of its earlier tokens change with each new one.
        """
        needs_causal(self.config, "decoding with a key/value cache")
        return KVCache(self.config, self.embed.weight, batch, capacity)

    def backbone(self, tokens: Tensor, cache: Cache | None = None, positions: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, D) after the last norm: all of the model but the projection to the vocabulary."""
        start = cache.length if cache is not None else 0
        end = start + tokens.shape[1]
        if end > self.config.context_length:
            raise ValueError(f"{end} tokens do not fit model.context_length {self.config.context_length}; pass fewer")
        columns = torch.arange(start, end, device=tokens.device)  # (T,)
        if self.sequence is not None:
            columns = columns + self.sequence.index * tokens.shape[1]
        x = self.embed(tokens)  # (B, T, D)
        mask: Mask | None = None
        if positions is not None:
            assert cache is None
            seen = positions if self.sequence is None else self.sequence.gather_columns(positions)
            flex = prefers_flex(self.config, x.device) and not only_plain()
            mask = document_mask(seen, x.dtype, flex, self.config.causal)
        else:
            positions = columns if cache is None else cache.positions(columns)  # (T,) or (B, T)
            mask = None if cache is None else cache.mask(columns)
        if self.position is not None:
            x = x + self.position(positions)
        rotation = self._rotation(positions, _products_dtype(x)) if self.position is None else None
        x = F.dropout(x, self.config.dropout, self.training)
        first_values: Tensor | None = None
        for block in self.blocks:
            mode = self.activation_checkpointing if self.training else "none"
            x, first_values = run_block(mode, block, x, rotation, mask, cache, first_values)
        if cache is not None:
            cache.length = end
        out: Tensor = self.norm(x)
        return out

    def _project(self, hidden: Tensor, loss: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        out: Tensor = (self.lm_head or self.embed)(self._scaled(hidden), loss)
        return out

    def _scaled(self, hidden: Tensor) -> Tensor:
        ratio = self.config.mup_ratio
        return hidden if ratio == 1 else hidden * ratio

    def head(self, hidden: Tensor, product: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Logits (…, V) of hidden states (…, D), so that a caller can take them a few positions at a time.

        `product`: multiplies by the output matrix, where a caller has a faster way than the module's own.
        """
        out = self._project(hidden) if product is None else product(self._scaled(hidden))
        cap = self.config.logit_softcap
        return out if cap is None else cap * torch.tanh(out / cap)

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        weights: Tensor,
        positions: Tensor | None = None,
        chunk: int | None = None,
    ) -> Tensor:
        """Sum over (B, T) of weight x -log p(target | tokens it may see): nats, a scalar in fp32.

        `chunk`: positions whose logits exist at a time; None chooses (`limits.chunk_positions`).
        """
        hidden = self.backbone(tokens, positions=positions).flatten(0, 1)  # (B T, D)
        size, cap = chunk_positions(self.vocab_size, chunk), self.config.logit_softcap
        return self._project(
            hidden,
            lambda x, weight: linear_cross_entropy(x, weight, targets.flatten(), weights.flatten(), size, cap),
        )

    def log_probs(
        self,
        tokens: Tensor,
        targets: Tensor,
        positions: Tensor | None = None,
        chunk: int | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """(B, T) fp32: log p(target | tokens it may see) of softmax(logits / temperature). Arguments as in `loss`."""
        return self.log_probs_and_entropy(tokens, targets, positions, chunk, temperature)[0]

    def log_probs_and_entropy(
        self,
        tokens: Tensor,
        targets: Tensor,
        positions: Tensor | None = None,
        chunk: int | None = None,
        temperature: float = 1.0,
        hidden: Tensor | None = None,
        vocab_size: int | None = None,
    ) -> Tensor:
        """(2, B, T) fp32: `log_probs`, and the entropy of the distribution at each position, without a gradient.

        `hidden`: (B, T, D) of `backbone`, where a caller needs it for something else too. `vocab_size`: ids from here
        on, the padding of the vocabulary, have probability 0.
        """
        hidden = self.backbone(tokens, positions=positions) if hidden is None else hidden
        size, cap = chunk_positions(self.vocab_size, chunk), self.config.logit_softcap

        def both(x: Tensor, weight: Tensor) -> Tensor:
            return torch.stack(linear_log_probs(x, weight[:vocab_size], targets.flatten(), size, cap, temperature))

        return self._project(hidden.flatten(0, 1), both).view(2, *targets.shape)

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        # Rounded to the activations' dtype only here, from angles computed in fp32: the same as Hugging Face does.
        return self.rope_cos[positions].unsqueeze(-2).to(dtype), self.rope_sin[positions].unsqueeze(-2).to(dtype)

    def materialize(self, device: torch.device | str) -> Transformer:
        """Leaves the meta device: memory for every weight (values undefined) and the rotation table; returns self."""
        to_empty(self, device)
        return self.make_tables(device)

    def sibling(self) -> Transformer:
        """Another model of the same settings without an output head; its weights are undefined.

        On the meta device where this one's are.
        """
        with torch.device("meta"):
            other = Transformer(self.config, self.vocab_size)
        other.lm_head = None
        if not self.embed.weight.is_meta:
            return other.materialize(self.embed.weight.device)
        return other if self.position is not None else other.make_tables(self.rope_cos.device)

    def make_tables(self, device: torch.device | str) -> Transformer:
        """Computes the rotation table alone; returns self."""
        if self.position is None:
            self.rope_cos, self.rope_sin = rotation_table(self.config, torch.device(device))
        return self

    def attends_by_products(self, device: torch.device) -> bool:
        """Tells whether compiled training computes attention as `pretrain.model.attention.product_attention` does."""
        return attends_by_products(device, self.config.dropout, self.config.context_length)

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
        | value_mix                           | 1/2                             | arXiv:2410.17897                    |

        With `zero_init` the residual layers, attention.out and mlp.down, are 0 (muP, arXiv:2203.03466, appendix D.2).
        With `mup_base_width` the deviation of the blocks' matrices is multiplied by sqrt(base width / width), so that
        their variance goes with 1 / inputs (table 8 there).

        init_std is 0.02 unless the recipe says otherwise. The Llama family gets the same: its papers do not say.
        """
        for name, parameter in self.named_parameters():
            if not parameter.is_meta:  # where there is nothing to fill, and torch loads its whole compiler to do so
                self.init_parameter(name, parameter)

    def init_parameter(self, name: str, parameter: Tensor) -> None:
        """Fills one parameter by the table of `init_weights` (by itself where weights are gathered one at a time)."""
        std = self.config.init_std
        residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
        if residual:
            std /= math.sqrt(2 * self.config.num_layers)
        if name.startswith("blocks."):
            std *= math.sqrt(self.config.mup_ratio)
        if name.endswith("bias") or (residual and self.config.zero_init):
            nn.init.zeros_(parameter)
        elif name.endswith("norm.weight"):
            nn.init.ones_(parameter)
        elif name.endswith("value_mix.weight"):
            nn.init.constant_(parameter, 0.5)
        else:
            nn.init.normal_(parameter, std=std)

    def parameter_count(self) -> ParameterCount:
        """Counts each parameter once, a tied matrix too."""
        total = sum(parameter.numel() for parameter in self.parameters())
        tables = [module for module in (self.embed, self.position, self.lm_head) if module is not None]
        return ParameterCount(total, total - sum(p.numel() for module in tables for p in module.parameters()))

    def flops_per_token(self, context_length: int | None = None) -> float:
        """Floating-point operations of forward and backward per token; see `pretrain.sizes.flops.flops_per_token`."""
        return flops_per_token(self.config, self.vocab_size, context_length)

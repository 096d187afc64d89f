"""Divides the matrices of every block between consecutive ranks: tensor parallelism (Megatron-LM, arXiv:1909.08053).

DeepSpeed's AutoTP cuts queries, keys, values, gate and up by their outputs (heads stay whole), the matrices after them
by their inputs, and adds what ranks computed where a block writes to the residual stream. Embeddings, head and norms
stay whole on every rank. All ranks of a group see the same rows; ZeRO partitions over ranks with different rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from configs.schema.model import Model
from configs.schema.recipe import Recipe
from pretrain.model.attention import Attention
from pretrain.model.transformer import Transformer
from pretrain.parallel.divisible import require_multiple
from pretrain.parallel.fragments import Shard, ShardRows


@dataclass(frozen=True)
class LayerCut:
    """Divides the parameters of one linear layer by its outputs, each section by itself, or by its inputs."""

    name: str  # the layer's, from its block on
    sections: list[int] | None  # outputs in each; None: by inputs

    def shard(self, shape: torch.Size, part: int, parts: int) -> Shard | None:
        """The shard number `part` of `parts` of a parameter of this layer; None where each rank keeps all of it."""
        if self.sections is None:
            if len(shape) == 1:  # a bias is added once, after the sum
                return None
            rows, columns = shape
            width = columns // parts
            return Shard(shape, (ShardRows(0, part * width, rows, width, columns),))
        width = shape[1] if len(shape) == 2 else 1
        found, start, first = [], 0, 0
        for size in self.sections:
            mine = size // parts * width
            found.append(ShardRows(start, first * width + part * mine, 1, mine, mine))
            start, first = start + mine, first + size
        return Shard(shape, tuple(found))


def layer_cuts(model: Model) -> list[LayerCut]:
    """Lists the linear layers of a block and how each is divided."""
    queries, values = model.num_heads * model.head_width, model.kv_heads * model.head_width
    return [
        LayerCut("attention.qkv", [queries, values, values]),
        LayerCut("attention.out", None),
        LayerCut("mlp.up", [model.mlp_width] * (2 if model.activation == "swiglu" else 1)),
        LayerCut("mlp.down", None),
    ]


def mark_shards(model: Transformer, part: int, parts: int) -> None:
    """Marks every parameter that DeepSpeed will divide with the `Shard` that this rank keeps; call it before."""
    cuts = {cut.name: cut for cut in layer_cuts(model.config)}
    for name, parameter in model.named_parameters():
        layer = name.split(".", 2)[-1].rpartition(".")[0]  # blocks.0.mlp.up.weight -> mlp.up
        shard = cuts[layer].shard(parameter.shape, part, parts) if layer in cuts else None
        if shard is not None:
            parameter.shard = shard  # type: ignore[attr-defined]


def use_local_heads(model: Transformer, parts: int) -> None:
    """Makes attention work on this rank's heads alone; call it after DeepSpeed has divided the matrices."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.heads, module.kv_heads = module.heads // parts, module.kv_heads // parts


def local(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """This rank's part of a whole value."""
    shard: Shard | None = getattr(parameter, "shard", None)
    return value if shard is None else shard.of(value).view(parameter.shape)


def check_tensor(recipe: Recipe) -> None:
    """Raises `ValueError` where `train.parallel.tensor` cannot be, or was not found to train as one rank does."""
    train, model = recipe.train, recipe.model
    parts, name = train.parallel.tensor, f"train.parallel.tensor {train.parallel.tensor}"
    if parts == 1:
        return
    sizes = {
        "model.num_heads": model.num_heads,
        "model.num_kv_heads": model.kv_heads,
        "the MLP's width": model.mlp_width,
    }
    require_multiple("train.parallel.tensor", sizes, parts)
    excluded = [
        ("train.parallel.sequence", train.parallel.sequence > 1, "ranks cannot share rows and matrices at once"),
        ("train.zero.stage 3", train.zero.stage == 3, "DeepSpeed 0.19.8 refuses its batch sizes"),
        ("train.optimizer.name muon", train.optimizer.name == "muon", "divided matrices are not put together for it"),
        ("train.precision fp8", train.precision == "fp8", "divided layers are not built for it"),
        (
            "train.activation_checkpointing selective",
            train.activation_checkpointing == "selective",
            "its gradient was found to be wrong; take full",
        ),
        ("model.dropout", model.dropout > 0, "ranks would need the same masks outside attention"),
    ]
    if problems := [f"{what}: {reason}" for what, given, reason in excluded if given]:
        raise ValueError(f"{name} cannot be combined with {'; or with '.join(problems)} (see docs/large-models.md)")

"""Groups parameters by the rule that updates them, its learning rate and its weight decay."""

from __future__ import annotations

from typing import Any

import torch

from configs.schema.train import Optimizer
from pretrain.model.attention import Attention
from pretrain.model.transformer import MLP, Transformer
from pretrain.optimizer.muon import Muon
from pretrain.optimizer.muon_exchange import Matrix
from pretrain.parallel.fragments import full_shape


def matrices(model: Transformer) -> dict[str, list[Matrix]]:
    """The weights inside the blocks, by parameter, as the matrices that they are made of.

    Queries, keys and values lie in one parameter for speed, gate and up of a gated MLP as well; each is a matrix of its
    own, and is made orthogonal by itself.
    """
    heights: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Attention):
            heights[f"{name}.qkv.weight"] = [n * module.width for n in (module.heads, module.kv_heads, module.kv_heads)]
        elif isinstance(module, MLP) and module.activation == "swiglu":
            heights[f"{name}.up.weight"] = [module.up.out_features // 2] * 2
    found: dict[str, list[Matrix]] = {}
    for name, parameter in model.named_parameters():
        shape = full_shape(parameter)
        if name.startswith("blocks.") and len(shape) == 2:
            offset, columns = 0, shape[1]
            for rows in heights.get(name, [shape[0]]):
                found.setdefault(name, []).append(Matrix(name, offset, rows, columns))
                offset += rows * columns
            assert offset == shape.numel(), name
    return found


def parameter_groups(model: Transformer, settings: Optimizer) -> list[dict[str, Any]]:
    """Groups for an optimizer, each with `params` in the order of the model, their `names`, and their own settings.

    Matrices and embeddings are decayed, norms and biases (1-D) are not. `lr` is the group's peak; `ratio` is that
    relative to `settings.lr`, whose schedule all follow. A tied matrix stands once. Groups without parameters are
    left out.

    With muP (`model.mup_base_width`) AdamW's rate of the matrices inside the blocks goes with 1 / width
    (arXiv:2203.03466, table 8), and their decay with width, so that rate x decay stays (arXiv:2405.13698). Muon's
    orthogonal updates have the right size at any width by themselves (arXiv:2310.17813).
    """
    muon, ratio = settings.muon, model.config.mup_ratio
    embedding_lr = settings.embedding_lr or settings.lr
    muon_decay = settings.weight_decay if muon.weight_decay is None else muon.weight_decay
    blocks = matrices(model)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name in blocks and settings.name == "muon":
            rule = ("muon", muon.lr, muon_decay)
        elif name in blocks:
            rule = ("adamw", settings.lr * ratio, settings.weight_decay / ratio)
        else:
            rate = embedding_lr if name in ("embed.weight", "position.weight") else settings.lr
            rule = ("adamw", rate, settings.weight_decay if len(full_shape(parameter)) >= 2 else 0.0)
        group = groups.setdefault(rule, {"params": [], "names": [], "rule": rule[0]})
        group |= {"lr": rule[1], "ratio": rule[1] / settings.lr, "weight_decay": rule[2]}
        group["params"].append(parameter)
        group["names"].append(name)
    return sorted(groups.values(), key=lambda group: (group["rule"], group["weight_decay"] == 0))


def build_optimizer(model: Transformer, settings: Optimizer, dtype: torch.dtype = torch.float32) -> torch.optim.AdamW:
    """The recipe's optimizer over `parameter_groups`; `dtype` is what Muon's matrix products are computed in.

    AdamW in torch's fused form: one pass over the memory on CPU and on CUDA.
    """
    beta1, beta2 = settings.betas
    groups = parameter_groups(model, settings)
    if settings.name == "muon":
        of_blocks = [matrix for parts in matrices(model).values() for matrix in parts]
        return Muon(groups, of_blocks, settings, dtype)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(beta1, beta2), eps=settings.eps, fused=True)

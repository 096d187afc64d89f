"""Groups parameters by the rule that updates them, its learning rate and its weight decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from configs.schema.train import Optimizer
from pretrain.model.attention import Attention
from pretrain.model.transformer import MLP
from pretrain.model.weight_names import MODEL, named_weights, transformers
from pretrain.optimizer.adamw import AdamW
from pretrain.optimizer.muon import Muon
from pretrain.optimizer.muon_exchange import Matrix
from pretrain.parallel.fragments import full_shape


def matrices(module: nn.Module) -> dict[str, list[Matrix]]:
    """The weights inside the blocks of a module's models, by parameter, as the matrices that they are made of.

    Queries, keys and values lie in one parameter for speed, gate and up of a gated MLP as well; each is a matrix of its
    own, and is made orthogonal by itself.
    """
    heights: dict[str, list[int]] = {}
    for path, part in module.named_modules():
        name = path.removeprefix(MODEL)
        if isinstance(part, Attention):
            heights[f"{name}.qkv.weight"] = [n * part.width for n in (part.heads, part.kv_heads, part.kv_heads)]
        elif isinstance(part, MLP) and part.activation == "swiglu":
            heights[f"{name}.up.weight"] = [part.up.out_features // 2] * 2
    blocks = tuple(f"{prefix}blocks." for prefix, _ in transformers(module))
    found: dict[str, list[Matrix]] = {}
    for name, parameter in named_weights(module):
        shape = full_shape(parameter)
        if name.startswith(blocks) and len(shape) == 2:
            offset, columns = 0, shape[1]
            for rows in heights.get(name, [shape[0]]):
                found.setdefault(name, []).append(Matrix(name, offset, rows, columns))
                offset += rows * columns
            assert offset == shape.numel(), name
    return found


def parameter_groups(module: nn.Module, settings: Optimizer) -> list[dict[str, Any]]:
    """Groups for an optimizer, each with `params` in the order of the module, their `names`, and their own settings.

    `module`: a model, or what holds models of one width and other weights, such as a head.

    Matrices and embeddings are decayed, norms and biases (1-D) are not. `lr` is the group's peak; `ratio` is that
    relative to `settings.lr`, whose schedule all follow. A tied matrix stands once. Groups without parameters are
    left out.

    With muP (`model.mup_base_width`) AdamW's rate of the matrices inside the blocks goes with 1 / width
    (arXiv:2203.03466, table 8), and their decay with width, so that rate x decay stays (arXiv:2405.13698). Muon's
    orthogonal updates have the right size at any width by themselves (arXiv:2310.17813).
    """
    models = list(transformers(module))
    muon, ratio = settings.muon, models[0][1].config.mup_ratio
    tables = {f"{prefix}{name}.weight" for prefix, _ in models for name in ("embed", "position")}
    embedding_lr = settings.embedding_lr or settings.lr
    muon_decay = settings.weight_decay if muon.weight_decay is None else muon.weight_decay
    blocks = matrices(module)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in named_weights(module):
        if not parameter.requires_grad:
            continue
        if name in blocks and settings.name == "muon":
            rule = ("muon", muon.lr, muon_decay)
        elif name in blocks:
            rule = ("adamw", settings.lr * ratio, settings.weight_decay / ratio)
        else:
            rate = embedding_lr if name in tables else settings.lr
            rule = ("adamw", rate, settings.weight_decay if len(full_shape(parameter)) >= 2 else 0.0)
        group = groups.setdefault(rule, {"params": [], "names": [], "rule": rule[0]})
        group |= {"lr": rule[1], "ratio": rule[1] / settings.lr, "weight_decay": rule[2]}
        group["params"].append(parameter)
        group["names"].append(name)
    return sorted(groups.values(), key=lambda group: (group["rule"], group["weight_decay"] == 0))


def build_optimizer(module: nn.Module, settings: Optimizer, dtype: torch.dtype = torch.float32) -> AdamW:
    """The recipe's optimizer over `parameter_groups`; `dtype` is what Muon's matrix products are computed in.

    AdamW in torch's fused form: one pass over the memory on CPU and on CUDA.
    """
    beta1, beta2 = settings.betas
    groups = parameter_groups(module, settings)
    if settings.name == "muon":
        of_blocks = [matrix for parts in matrices(module).values() for matrix in parts]
        return Muon(groups, of_blocks, settings, dtype)
    return AdamW(groups, lr=settings.lr, betas=(beta1, beta2), eps=settings.eps, fused=True)

"""Training as published, in float64 and without ZeRO, ranks or micro-batches: what every configuration must equal.

Written from the papers, one parameter at a time; of the project only the model's forward, its initial weights and its
batches are used.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.schema.batch_plan import total_steps
from configs.schema.recipe import load
from data_prep.tokens.shards import load_manifest
from pretrain.batches.source import BatchSource
from pretrain.model.transformer import Transformer
from pretrain.optimizer.schedule import learning_rate
from pretrain.session import initial_weights


def orthogonal(g: Tensor, steps: int) -> Tensor:
    """Keller Jordan 2024, `zeropower_via_newtonschulz5`, of one matrix."""
    x = g / (g.norm() + 1e-7)
    if g.shape[0] > g.shape[1]:
        x = x.T
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def parts(name: str, model: Transformer) -> list[int]:
    """Heights of the matrices in a parameter; none for what AdamW updates."""
    config = model.config
    if not name.startswith("blocks.") or dict(model.named_parameters())[name].ndim < 2:
        return []
    if name.endswith("attention.qkv.weight"):
        return [config.num_heads * config.head_width, *[config.kv_heads * config.head_width] * 2]
    if name.endswith("mlp.up.weight") and config.activation == "swiglu":
        return [config.mlp_width, config.mlp_width]
    return [dict(model.named_parameters())[name].shape[0]]


def train(file: Path) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Losses and gradient norms of all steps, and the final weights, of a recipe (no dropout)."""
    recipe = load(file)
    data, settings = load_manifest(recipe.data_directory), recipe.train.optimizer
    model = Transformer(recipe.model, recipe.model.padded_vocab(data.vocab_size))
    shapes = {name: list(value.shape) for name, value in model.named_parameters()}
    draw = initial_weights(model, shapes, recipe.seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(draw(name))
    model.double()
    batches = BatchSource(recipe, data)
    state = {name: [torch.zeros_like(value) for _ in range(2)] for name, value in model.named_parameters()}
    losses, norms = [], []
    steps = total_steps(recipe, batches.windows)
    for step in range(steps):
        batch = batches.batch(step, 0, 1)
        loss = F.cross_entropy(model(batch.tokens).flatten(0, 1), batch.targets.flatten())
        model.zero_grad()
        loss.backward()
        gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        norm = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
        losses.append(loss.item())
        norms.append(norm.item())
        factor = learning_rate(recipe.train.schedule, 1.0, step, steps)
        with torch.no_grad():
            for name, value in model.named_parameters():
                gradient = gradients[name] * min(1.0, recipe.train.grad_clip / (norm.item() + 1e-6))
                heights = parts(name, model) if settings.name == "muon" else []
                first, second = state[name]
                if heights:
                    rate, muon = settings.muon.lr * factor, settings.muon
                    decay = settings.weight_decay if muon.weight_decay is None else muon.weight_decay
                    first.mul_(muon.momentum).add_(gradient, alpha=1 - muon.momentum)
                    seen = gradient * (1 - muon.momentum) + first * muon.momentum if muon.nesterov else first
                    value.mul_(1 - rate * decay)
                    for piece, of in zip(value.split(heights), seen.split(heights), strict=True):
                        rows, columns = of.shape
                        spectral, rms = max(1, rows / columns) ** 0.5, 0.2 * max(rows, columns) ** 0.5
                        size = spectral if muon.scale == "spectral" else rms
                        piece.sub_(rate * size * orthogonal(of, muon.steps))
                    continue
                beta1, beta2 = settings.betas
                rate = (settings.embedding_lr or settings.lr) if "embed" in name or "position" in name else settings.lr
                rate *= factor
                first.mul_(beta1).add_((1 - beta1) * gradient)
                second.mul_(beta2).add_((1 - beta2) * gradient**2)
                mean, square = first / (1 - beta1 ** (step + 1)), second / (1 - beta2 ** (step + 1))
                value.mul_(1 - rate * (settings.weight_decay if value.ndim >= 2 else 0))
                value.sub_(rate * mean / (square.sqrt() + settings.eps))
    return losses, norms, {name: value.detach() for name, value in model.named_parameters()}

"""Opens the model of a checkpoint beside the one that is trained: a reference, a reward model.

It is a plain copy outside of DeepSpeed, whole on every rank, in the precision of training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pretrain.batches.source import Batch
from pretrain.checkpoint.load_weights import extra_shapes, open_weights
from pretrain.checkpoint.manifest import DIRECTORY, MANIFEST, CheckpointInfo, newest, read_info
from pretrain.engine.by_target import values_by_target
from pretrain.engine.engine import Engine
from pretrain.model.transformer import Transformer

_DTYPES = {"bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class FrozenModel:
    """A model that is not trained, in evaluation mode, with the weights that its checkpoint keeps beside it."""

    info: CheckpointInfo
    model: Transformer
    extra: dict[str, Tensor]  # by the names in checkpoints, such as reward_head.weight (1, D)
    autocast: torch.dtype | None = None  # in which products are made, over weights in fp32
    rows: int | None = None  # that go through it at a time; None: a whole batch
    chunk: int | None = None  # positions whose logits exist at a time

    @classmethod
    def open(cls, path: Path, device: torch.device, precision: str = "fp32") -> FrozenModel:
        """The newest checkpoint of a run directory, or the one in a checkpoint's directory.

        `precision`: bf16, fp16 or fp32 of the weights; fp8 takes bf16.

        Raises:
            ValueError: when there is no checkpoint, or it is damaged.
        """
        return cls(*_loaded(path, device, _DTYPES.get(precision, torch.float32)))

    @classmethod
    def beside(cls, engine: Engine, path: Path) -> FrozenModel:
        """As `open`, computed as the engine computes: the same weights give the same numbers.

        To the bit where training is not compiled; otherwise to rounding.
        """
        casts = engine.precision_of_autocast
        dtype = torch.float32 if casts else _DTYPES.get(engine.precision, torch.float32)
        return cls(*_loaded(path, engine.device, dtype), casts, engine.plan.micro_batch, engine.module.chunk)

    @torch.inference_mode()
    def evaluate(self, batch: Batch, take: Callable[..., Tensor]) -> Tensor:
        """As `Engine.evaluate`, of this model; no rank waits for another."""
        batch = batch.to(self.model.embed.weight.device)
        size = self.rows or len(batch.tokens)
        parts = (batch.rows(start, start + size) for start in range(0, len(batch.tokens), size))
        device = batch.tokens.device.type
        with torch.autocast(device, self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            return values_by_target(batch, parts, take)

    def log_probs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """(B, T) fp32: log-probabilities of the targets."""

        def take(
            tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None = None, **_: Tensor
        ) -> Tensor:
            return self.model.log_probs(tokens, targets, positions, self.chunk, temperature)[None]

        return self.evaluate(batch, take)[0]


def _loaded(
    path: Path, device: torch.device, dtype: torch.dtype
) -> tuple[CheckpointInfo, Transformer, dict[str, Tensor]]:
    """Description, model and other weights of a checkpoint; no more than one weight is held in fp32 at a time."""
    info = read_info(path) if (path / MANIFEST).is_file() and not (path / DIRECTORY).is_dir() else newest(path)
    if info is None:
        raise ValueError(f"{path} holds no whole checkpoint; train it first, or name another run")
    rows, weights = open_weights(info)
    with torch.device("meta"):
        model = Transformer(info.recipe.model, rows)
    model.to(dtype).materialize(device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.whole(name, parameter.shape))
    extra = {name: weights.whole(name, shape).to(device, dtype) for name, shape in extra_shapes(info)}
    return info, model.eval().requires_grad_(False), extra

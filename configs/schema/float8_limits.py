"""Checks the requirements of `train.precision: fp8` on the rest of a recipe.

`pretrain.model.float8` checks its requirements on the machine.
"""

from __future__ import annotations

from configs.schema.model import Model
from configs.schema.train import Train

MULTIPLE = 16  # both sizes of an fp8 operand, as cuBLAS takes them


def check_float8(model: Model, train: Train) -> None:
    """Raises `ValueError` when the recipe sets fp8 together with ZeRO-3, or with sizes that do not fit."""
    if train.precision != "fp8":
        return
    if train.zero.stage == 3:
        raise ValueError(
            "train.precision fp8 needs train.zero.stage 0, 1 or 2: its layers keep their weights from the forward to "
            "the backward pass, and stage 3 frees them; lower the stage or use bf16"
        )
    heads, keys, width = model.num_heads, model.kv_heads, model.head_width
    sizes = {
        "model.hidden_size": model.hidden_size,
        "model.num_heads x the width of a head": heads * width,
        "(model.num_heads + 2 model.num_kv_heads) x the width of a head": (heads + 2 * keys) * width,
        "model.intermediate_size": model.mlp_width,
        # The gradient of a weight is a product over the tokens of a micro-batch.
        "model.context_length / train.parallel.sequence": model.context_length // train.parallel.sequence,
    }
    if wrong := [f"{name} is {size}" for name, size in sizes.items() if size % MULTIPLE]:
        raise ValueError(
            f"train.precision fp8 multiplies matrices whose sizes are multiples of {MULTIPLE}, but "
            f"{', '.join(wrong)}; change the shape or use bf16"
        )

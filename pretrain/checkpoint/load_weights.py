"""Loads the model of a checkpoint; needs neither DeepSpeed nor the run it came from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import torch

from configs.schema.recipe import RESOLVED_NAME
from data_prep.tokens.special_tokens import SPECIAL_IDS
from data_prep.tokens.vocab import Vocab
from pretrain.checkpoint.fragment_files import FragmentReader
from pretrain.checkpoint.manifest import IMPORTED, TOKENIZER, CheckpointInfo, find_damage, read_info
from pretrain.model.transformer import Transformer
from pretrain.model.weight_names import EXTRA_WEIGHTS
from pretrain.sizes.shapes import check_context, parameter_shapes


def open_weights(info: CheckpointInfo) -> tuple[int, FragmentReader]:
    """The rows of a checkpoint's embedding, and its weights: names and shapes compared, and no weight read yet.

    Raises:
        ValueError: when it is damaged, was imported by a version that lost what texts begin with, or its weights are
            not those of its settings.
    """
    if problem := find_damage(info):
        raise ValueError(f"{info.directory} is damaged: {problem}; use another checkpoint")
    _check_import(info)
    config = info.recipe.model
    rows = config.padded_vocab(Vocab.load(info.tokenizer).size)
    weights = FragmentReader(info.directory, "weights")
    weights.expect(itertools.chain(parameter_shapes(config, rows), extra_shapes(info)))
    numbers = sum(math.prod(shape) for _, shape in parameter_shapes(config, rows))
    check_context(config, 4 * numbers, f"{info.directory / RESOLVED_NAME}: model.context_length")
    return rows, weights


def extra_shapes(info: CheckpointInfo) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the weights beside the model's that the checkpoint says to hold: of a head, of a critic."""
    return ((name, tuple(shape)) for name, shape in info.shapes.items() if name.startswith(EXTRA_WEIGHTS))


def _check_import(info: CheckpointInfo) -> None:
    """Refuses imports of versions that lost the token that texts begin with, or an output head."""
    if info.data_fingerprint.startswith(IMPORTED) and f"{TOKENIZER}/{SPECIAL_IDS}" not in info.files:
        raise ValueError(
            f"{info.directory} was imported by an earlier version, which did not keep the token that texts begin with, "
            "so its scores could be wrong; import the model again: replica import DIRECTORY --out NEW_RUN"
        )


def load_weights(checkpoint: CheckpointInfo | Path) -> Transformer:
    """The model of a checkpoint in evaluation mode, fp32, on the CPU; needs neither DeepSpeed nor the run it came from.

    Args:
        checkpoint: its description, or its directory.

    Raises:
        ValueError: when it is not a checkpoint, and as `open_weights`, before memory is asked for.
    """
    info = read_info(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    rows, weights = open_weights(info)
    with torch.device("meta"):
        model = Transformer(info.recipe.model, rows)
    model.materialize("cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.whole(name, parameter.shape))
    return model.eval()

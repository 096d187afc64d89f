"""Predicts the tokens behind masks: the seam between a masked model and what scores or samples by it.

As in training, the state at position i predicts token i + 1, so the first token of a row is never predicted. Shapes:
B rows, T positions, D width, N predicted tokens, V ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from configs.schema.chat import MASK
from data_prep.tokens.vocab import Vocab
from pretrain.model.plain_kernels import plain_kernels
from pretrain.model.transformer import Transformer

Tokens = npt.NDArray[np.int64]


class Predictor(Protocol):
    """Predicts tokens.

    Attributes:
        context_length: most tokens of a row.
        mask_id: stands where a token is to be predicted.
    """

    @property
    def context_length(self) -> int: ...

    @property
    def mask_id(self) -> int: ...

    def states(self, rows: Sequence[Tokens]) -> Tensor:
        """States (B, T, D) of rows of up to T tokens; those beyond the end of a row mean nothing."""
        ...

    def logits(self, states: Tensor) -> Tensor:
        """Logits (N, V), fp32, of the tokens that follow the states (N, D). They are finite; a mask has probability 0.

        The caller may overwrite them.
        """
        ...


class MaskedPredictor:
    """Predicts with a transformer that reads both ways.

    Args:
        model: in evaluation mode.
        vocab_size: number of ids of the tokenizer. Padding rows of the embedding have no logits.
        mask_id: as in `Predictor`.
    """

    def __init__(self, model: Transformer, vocab_size: int, mask_id: int) -> None:
        self._model, self._vocab_size, self.mask_id = model, vocab_size, mask_id
        self.context_length = model.config.context_length

    @torch.inference_mode()
    def states(self, rows: Sequence[Tokens]) -> Tensor:
        """See `Predictor.states`. What pads a row is a document of its own, which the row does not see."""
        device, width = self._model.embed.weight.device, max(map(len, rows))
        tokens = np.full((len(rows), width), self.mask_id, dtype=np.int64)
        positions = np.tile(np.arange(width), (len(rows), 1))
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = row
            positions[number, len(row) :] -= len(row)
        inputs = torch.from_numpy(tokens).to(device)
        if all(len(row) == width for row in rows):
            return self._model.backbone(inputs)
        # FlexAttention would be compiled anew for each shape, and here each pass may have another.
        with plain_kernels(self._model):
            return self._model.backbone(inputs, positions=torch.from_numpy(positions).to(device))

    @torch.inference_mode()
    def logits(self, states: Tensor) -> Tensor:
        """See `Predictor.logits`."""
        logits = self._model.head(states)[:, : self._vocab_size].float()
        logits[:, self.mask_id] = LOWEST
        return logits


def predictor_of(model: Transformer, vocab: Vocab) -> MaskedPredictor:
    """Returns the predictor of a masked model.

    Raises:
        ValueError: when its vocabulary has no mask.
    """
    if vocab.mask_id is None:
        raise ValueError(
            f"the tokenizer of a masked model has no special token {MASK}; use the one it was trained with"
        )
    return MaskedPredictor(model, vocab.size, vocab.mask_id)


# Finite, so that logits can be checked for it, and so low that its probability is 0 in fp32.
LOWEST = -1e30


def state_at(states: Tensor, places: Sequence[npt.NDArray[np.int64]]) -> Tensor:
    """States (N, D) that predict the tokens at these places, all 1 or more, of each row of states (B, T, D)."""
    width = states.shape[1]
    flat = np.concatenate([row * width + own - 1 for row, own in enumerate(places)])
    return states.flatten(0, 1).index_select(0, torch.from_numpy(flat).to(states.device))

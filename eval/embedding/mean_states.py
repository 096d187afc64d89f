"""Computes the vector of a document: the mean of the states after the last norm over its tokens.

A document longer than the context is read in pieces, each after the begin token, and the mean is taken over the tokens
of all pieces. The state of the begin token is left out: it is the same for every document.

Shapes: B rows of a forward pass, T positions, D width of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from data_prep.tokens.vocab import Vocab
from pretrain.model.transformer import Transformer

_PASS_TOKENS = {"cuda": 2**16, "cpu": 2**12}

Floats = npt.NDArray[np.float64]


def mean_states(model: Transformer, vocab: Vocab, texts: Sequence[str]) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Computes the vectors (n, D) of n texts, float64, and their numbers of tokens (n,).

    Args:
        model: in evaluation mode.
        vocab: of the model.
        texts: none empty.

    Raises:
        ValueError: when a context holds the begin token alone, or the model's states are NaN or infinite.
    """
    room = model.config.context_length - 1
    if room < 1:
        raise ValueError("model.context_length is 1: there is no room for a token after the begin token")
    encoded = [vocab.encode(text) for text in texts]
    pieces = [(owner, ids[at : at + room]) for owner, ids in enumerate(encoded) for at in range(0, len(ids), room)]
    sums = np.zeros((len(texts), model.config.hidden_size))
    for batch in _passes(pieces, model):
        for owner, total in _piece_sums(model, vocab.begin_id, batch):
            sums[owner] += total
    counts = np.array([len(ids) for ids in encoded])
    if not np.isfinite(sums).all():
        raise ValueError("the model's states are NaN or infinite. Did training diverge? Choose an earlier checkpoint")
    return sums / np.maximum(counts, 1)[:, None], counts


def _passes(pieces: Sequence[tuple[int, list[int]]], model: Transformer) -> Iterator[list[tuple[int, list[int]]]]:
    """Groups pieces of similar length into forward passes, the longest first.

    A model that reads both ways would see padding, so its rows must be of equal length.
    """
    device = model.embed.weight.device.type
    most = _PASS_TOKENS.get(device, _PASS_TOKENS["cpu"])
    batch: list[tuple[int, list[int]]] = []
    for piece in sorted(pieces, key=lambda one: len(one[1]), reverse=True):
        longest = len(batch[0][1]) if batch else 0
        full = (len(batch) + 1) * (longest + 1) > most
        if batch and (full or (not model.config.causal and len(piece[1]) != longest)):
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _piece_sums(
    model: Transformer, begin_id: int, batch: Sequence[tuple[int, list[int]]]
) -> Iterator[tuple[int, Floats]]:
    """Yields the owner of each piece, and the sum (D,) of the states of its tokens."""
    width = 1 + max(len(ids) for _, ids in batch)
    inputs = np.full((len(batch), width), begin_id, dtype=np.int64)
    for row, (_, ids) in enumerate(batch):
        inputs[row, 1 : 1 + len(ids)] = ids
    with torch.inference_mode():
        hidden = model.backbone(torch.from_numpy(inputs).to(model.embed.weight.device))  # (B, T, D)
        lengths = torch.tensor([len(ids) for _, ids in batch], device=hidden.device)
        columns = torch.arange(width, device=hidden.device)
        inside = (columns >= 1) & (columns <= lengths[:, None])  # (B, T)
        totals = torch.where(inside[..., None], hidden.float(), 0.0).sum(dim=1, dtype=torch.float64)
    yield from zip((owner for owner, _ in batch), totals.cpu().numpy(), strict=True)

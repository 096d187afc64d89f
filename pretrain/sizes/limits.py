"""Holds the limits on memory that training keeps and that the prediction of its memory needs. Free of torch."""

from __future__ import annotations

# Logits that exist at a time while the loss is computed, unless `train.loss_chunk` says how many positions.
CHUNK_LOGITS = 2**26
_LEAST_CHUNK_POSITIONS = 256
# Compiled attention on a CPU computes by two products, and keeps its weights (T, T), up to this context length.
LONGEST_PRODUCT_ATTENTION = 512
# Elements of matrices that Muon works on at a time on a rank: bounds the memory for copies, and keeps a batch of
# products large enough.
MUON_ROUND_ELEMENTS = 2**26
# Batches that are read ahead of training.
PREFETCH_BATCHES = 4


def chunk_positions(vocab_size: int, setting: int | None = None) -> int:
    """Positions whose logits exist at a time: `train.loss_chunk`, or as many as make `CHUNK_LOGITS` logits."""
    return setting or max(_LEAST_CHUNK_POSITIONS, CHUNK_LOGITS // vocab_size)

"""Makes rows of a batch from chosen documents: conversations, or the two texts of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from data_prep.tokens.shards import SourceShards
from data_prep.tokens.vocab import Vocab
from pretrain.batches.source import Batch
from pretrain.batches.units import UnitWindows, Weigh

References = Mapping[str, NDArray[np.float64]]  # source -> (documents,) log-probability of each answer


class UnitRows:
    """Reads documents as rows of a batch; those of pairs with the columns that a pair's loss needs.

    Args:
        sources: the shards.
        vocab: that they were encoded with.
        context: tokens of a row.
        weigh: the weights of a document's targets from their kinds.
        per_unit: documents of a unit: two of a pair.
        references: the reference's log-probability of each document's answer; None: the loss needs none.
    """

    def __init__(
        self,
        sources: Sequence[SourceShards],
        vocab: Vocab,
        context: int,
        weigh: Weigh,
        per_unit: int = 1,
        references: References | None = None,
    ) -> None:
        self.sources = [UnitWindows(source, vocab.size, context, vocab.eod_id) for source in sources]
        self._context, self._eod, self._token_bytes = context, vocab.eod_id, vocab.token_bytes
        self._weigh, self.per_unit, self._references = weigh, per_unit, references

    def batch(self, documents: Sequence[tuple[int, int]], fresh: bool = False, rows: int | None = None) -> Batch:
        """The documents (source, number), a row each, and empty rows up to `rows`.

        The count of pairs is their number. Columns of pairs: `margin` (B,) float32, and `reference` (B,) float64 where
        there is one.
        """
        size = len(documents) if rows is None else rows
        tokens, targets = np.full((2, size, self._context), self._eod)
        weights = np.zeros((size, self._context), dtype=np.float32)
        lengths = [0] * size
        margin, reference = np.zeros(size, dtype=np.float32), np.zeros(size)
        for row, (number, document) in enumerate(documents):
            source = self.sources[number]
            lengths[row] = used = sum(source.read(document, tokens[row], targets[row]))
            weights[row, :used] = self._weigh(source.kinds(document))
            if self.per_unit == 2:
                margin[row] = source.margin(document)
            if self._references is not None:
                reference[row] = self._references[source.name][document]
        columns = {"margin": torch.from_numpy(margin)} if self.per_unit == 2 else {}
        if self._references is not None:
            columns["reference"] = torch.from_numpy(reference)
        return Batch(
            tokens=torch.from_numpy(tokens),
            targets=torch.from_numpy(targets),
            weights=torch.from_numpy(weights),
            target_bytes=int(self._token_bytes[targets[weights > 0]].sum(dtype=np.int64)),
            fresh=fresh,
            columns=columns,
            count=len(documents) / 2 if self.per_unit == 2 else None,
            lengths=tuple(lengths),
        )

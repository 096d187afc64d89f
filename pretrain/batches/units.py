"""Reads conversations, pairs and prompts from shards: their ids, and which of them are learnt.

A unit's document is stored as it is rendered, without the first token (the end of the document before it is read as
that) and with an end-of-document id. So a row's inputs are `eod` and the document without its last id, and its targets
the document. Beside each id lies its kind (`data_prep.tokens.chat_template.Kind`), and what an objective learns from a
row follows from the kinds of its targets alone:

    inputs    eod      user    Hi     end    assistant  Hello  end
    targets   user     Hi      end    assistant  Hello  end    eod
    kinds     given    given   given  given      answer end    given
    learnt    0        0       0      0          1      1      0      answers: weights of the targets (`learnt`)
    scored    0        0       0      0          0      0      1      whole texts: the place that has read the last end
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_prep.tokens.chat_template import Kind
from data_prep.tokens.shards import DocumentSpan, ShardIndex, SourceShards, TokenStream, beside
from pretrain.batches.windows import Row

Kinds = NDArray[np.uint8]  # (n,) of the targets of one document
Weights = NDArray[np.float32]  # (n,)
Weigh = Callable[[Kinds], Weights]
TrainOn = Literal["all", "last"]

_CHECKED = 2**16  # documents that are looked at at a time
_LEARNT = (Kind.ANSWER, Kind.END, Kind.CALL)


def learnt(kinds: Kinds, train_on: TrainOn = "all") -> Weights:
    """1 at the targets that the assistant writes, with the end of each answer; 0 at what is given to it.

    `last`: in the last answer alone.
    """
    weights = np.isin(kinds, _LEARNT)
    if train_on == "last":
        ends = kinds == Kind.END
        earlier = np.cumsum(ends) - ends  # answers that have ended before each target
        weights &= earlier == ends.sum() - 1
    return weights.astype(np.float32)


def last_answer(kinds: Kinds) -> Weights:
    """1 at the targets of the last answer and at its end: what tells a pair's documents apart."""
    return learnt(kinds, "last")


def scored(kinds: Kinds) -> Weights:
    """1 at the place that has read the end of the last answer, where a reward model gives its score."""
    weights = np.zeros(len(kinds), dtype=np.float32)
    weights[np.flatnonzero(kinds == Kind.END)[-1:] + 1] = 1
    return weights


class UnitWindows:
    """The documents of a source, each a row by itself: padded on the right, never cut.

    Raises:
        ValueError: when a document is longer than `context`.
    """

    def __init__(self, source: SourceShards, vocab_size: int, context: int, eod: int) -> None:
        self.name = source.name
        self.stream = TokenStream(source.prefixes, source.name, vocab_size)
        self.context, self._eod = context, eod
        indexes = [ShardIndex.open(prefix) for prefix in source.prefixes]
        self._borders = [0, *accumulate(index.documents for index in indexes)]
        # Opened once: to map a file for each document took most of a batch's time.
        self._lengths = [index.lengths for index in indexes]
        self._starts = [(index.pointers, index.dtype.itemsize) for index in indexes]
        self._sidecars = [_Sidecar(beside(prefix, ".parquet")) for prefix in source.prefixes]
        longest = max((longest_document(index) for index in indexes), default=0)
        if longest > context:
            raise ValueError(too_long(source.name, longest, context))

    @property
    def documents_count(self) -> int:
        """Documents in the source."""
        return self._borders[-1]

    def place(self, document: int) -> tuple[int, int]:
        """First token of a document in the stream, and its tokens."""
        shard, row = self._row(document)
        pointers, width = self._starts[shard]
        return self.stream.starts[shard] + int(pointers[row]) // width, int(self._lengths[shard][row])

    def _row(self, document: int) -> tuple[int, int]:
        shard = bisect_right(self._borders, document) - 1
        return shard, document - self._borders[shard]

    def ids(self, document: int) -> Row:
        """The ids of a document, with its end."""
        return self.stream.read(*self.place(document))

    def read(self, window: int, tokens: Row, targets: Row) -> list[int]:
        """Fills a row with the document number `window`; returns its tokens. What they leave stays as it is."""
        found = self.ids(window)
        targets[: len(found)] = found
        tokens[0] = self._eod
        tokens[1 : len(found)] = found[:-1]
        return [len(found)]

    def kinds(self, window: int) -> Kinds:
        """The kinds of a document's tokens."""
        return self.stream.kinds(*self.place(window))

    def sidecar(self, document: int) -> dict[str, Any]:
        """What lies beside a document's tokens: id, and reference, metadata and margin where there are such."""
        shard, row = self._row(document)
        return self._sidecars[shard].row(row)

    def margin(self, document: int) -> float:
        """How much better the chosen answer of a pair is; 0 where nobody said so."""
        return float(self.sidecar(document).get("margin") or 0.0)

    def documents(self, window: int) -> list[DocumentSpan]:
        """The document itself: where it came from."""
        return self.stream.documents(*self.place(window))


class _Sidecar:
    """The Parquet file of a shard, read once, when it is first asked for; shards made elsewhere have none."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @cached_property
    def _columns(self) -> dict[str, Any]:
        if not self._file.is_file():
            return {}
        import pyarrow.parquet as pq

        table = pq.read_table(
            self._file, columns=[name for name in pq.read_schema(self._file).names if name in _SIDECAR]
        )
        return {name: table[name].combine_chunks() for name in table.column_names}

    def row(self, row: int) -> dict[str, Any]:
        return {"id": f"document {row}", **{name: column[row].as_py() for name, column in self._columns.items()}}


_SIDECAR = ("id", "reference", "metadata", "margin")


def longest_document(index: ShardIndex) -> int:
    """Tokens of the longest document; raises `ValueError` when documents do not lie one after the other."""
    parts = (index.rows(first, first + _CHECKED)[1] for first in range(0, index.documents, _CHECKED))
    return max((int(sizes.max()) for sizes in parts), default=0)


def too_long(source: str, tokens: int, context: int) -> str:
    """The error for a document that would have to be cut."""
    return (
        f"source `{source}` has a conversation of {tokens:,} tokens, more than model.context_length {context:,}, and no"
        " answer is ever cut; prepare the data again with this context: replica data RECIPE"
    )

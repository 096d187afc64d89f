"""Traces a training step back to the documents that it read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from data_prep.tokens.shards import DocumentSpan
from data_prep.tokens.vocab import Vocab
from pretrain.batches.source import Batch

_FIRST_TOKENS = 24
_FIRST_CHARACTERS = 60


@dataclass(frozen=True)
class TracedSpan:
    """A stretch of one document in a training batch."""

    row: int  # of the global batch
    id: str
    source: str
    offset: int  # tokens of the document before the stretch
    tokens: int
    words: str  # how the stretch begins
    counted: int | None = None  # its targets that the loss counts; of masked diffusion, those that are hidden


class TracedBatches(Protocol):
    """A source of batches that can say where they are from."""

    global_batch: int  # rows
    opens_with_input: bool  # a row's first token belongs to its first document too; otherwise that is a target

    @property
    def windows(self) -> int:
        """Rows of one epoch."""

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """The global batch of a step, or a rank's share."""

    def documents(self, step: int) -> list[list[DocumentSpan]]:
        """For each row of the global batch: the documents in it."""


def traced(source: TracedBatches, vocab: Vocab, step: int) -> Iterator[TracedSpan]:
    """The documents behind the batch of `step` (counted from 0), in the order of the batch."""
    batch = source.batch(step)
    for row, spans in enumerate(source.documents(step)):
        ids, counted = batch.targets[row].tolist(), (batch.weights[row] > 0).tolist()
        if source.opens_with_input:  # a window cut from the stream holds the token before its first target too
            ids.insert(0, int(batch.tokens[row, 0]))
            counted.insert(0, False)
        position = 0
        for span in spans:
            end = position + span.tokens
            begin = ids[position : min(end, position + _FIRST_TOKENS)]
            runs = groupby(begin, lambda token: token in vocab.special_ids)
            texts = (vocab.decode(list(run)) for special, run in runs if not special)
            words = " ".join(" ".join(texts).split())[:_FIRST_CHARACTERS]
            known = (row, span.id, span.source, span.offset_in_document, span.tokens, words)
            yield TracedSpan(*known, sum(counted[position:end]))
            position = end


# What some ranks read in a step, counted from 0.
SpansOf = Callable[[int, Collection[int]], Iterable[TracedSpan]]


@dataclass(frozen=True)
class SpansOfRanks:
    """Finds the documents that some ranks read in a step."""

    source: TracedBatches
    vocab: Vocab
    ranks: int  # of the run
    sharing: int  # consecutive ranks that read the same rows

    def __call__(self, step: int, ranks: Collection[int]) -> Iterator[TracedSpan]:
        """The spans of `ranks` in `step` (counted from 0), in the order of the batch."""
        rows = self.source.global_batch * self.sharing // self.ranks  # of each group of ranks
        groups = {rank // self.sharing for rank in ranks}
        return (span for span in traced(self.source, self.vocab, step) if span.row // rows in groups)

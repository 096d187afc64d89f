"""From a training step back to the documents it read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from data_prep.tokens.vocab import Vocab
from pretrain.batches.source import BatchSource

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


def traced(source: BatchSource, vocab: Vocab, step: int) -> Iterator[TracedSpan]:
    """The documents behind the batch of `step` (counted from 0), in the order of the batch."""
    batch = source.batch(step)
    for row, spans in enumerate(source.documents(step)):
        ids = batch.targets[row].tolist()
        if not source.packed:  # a window cut from the stream holds the token before its first target too
            ids.insert(0, int(batch.tokens[row, 0]))
        position = 0
        for span in spans:
            begin = ids[position : position + min(span.tokens, _FIRST_TOKENS)]
            words = " ".join(vocab.decode([token for token in begin if token != vocab.eod_id]).split())
            yield TracedSpan(row, span.id, span.source, span.offset_in_document, span.tokens, words[:_FIRST_CHARACTERS])
            position += span.tokens

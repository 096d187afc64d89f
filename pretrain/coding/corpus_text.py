"""Turns the tokens of a corpus back into its documents, one JSON object a line. Free of torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from data_prep.tokens.vocab import Vocab
from pretrain.coding.strands import Strands


def corpus_lines(strands: Strands, vocab: Vocab) -> Iterator[bytes]:
    """Lines {"text", "source", "split"}: the documents in the order in which they stand in the shards."""
    for strand in strands.strands:
        for tokens in strands.documents(strand):
            line = {"text": vocab.decode(tokens), "source": strand.name, "split": strand.split}
            yield json.dumps(line, ensure_ascii=False).encode() + b"\n"


@dataclass(frozen=True)
class TextFacts:
    """What the lines of a corpus must come to."""

    bytes: int  # UTF-8 bytes of the documents' text
    sha256: str  # of all lines


def text_facts(strands: Strands, vocab: Vocab, tags: Mapping[str, str]) -> TextFacts:
    """The facts of tokens that are all there.

    Args:
        strands: with all tokens.
        vocab: of the tokens.
        tags: source -> what stands before each of its documents (`data.sources.N.prefix`), where anything does.

    Raises:
        ValueError: where the tokens of a source do not give back all of its text.
    """
    digest, total = hashlib.sha256(), 0
    for strand in strands.strands:
        alone = Strands([strand], strands.vocab_size, strands.eod)
        alone.tokens = strands.tokens
        found, expected = 0, strand.bytes + strand.documents * len(tags.get(strand.name, "").encode())
        for line in corpus_lines(alone, vocab):
            digest.update(line)
            found += len(json.loads(line)["text"].encode())
        if found != expected:
            raise ValueError(
                f"the tokens of `{strand.name}` ({strand.split} split) give back {found:,} of {expected:,} bytes "
                "of its text, so it could not be decoded; use a tokenizer without losses, such as "
                "data.tokenizer.kind=byte"
            )
        total += found
    return TextFacts(total, digest.hexdigest())

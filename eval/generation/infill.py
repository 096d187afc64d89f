"""Fills in the gaps of a prompt by a masked model."""

from __future__ import annotations

from collections.abc import Sequence

from data_prep.tokens.gaps import gapped_prompt
from data_prep.tokens.vocab import Vocab
from eval.generation.completions import Stops
from eval.reading.reader import Reader
from pretrain.generation.player import Request
from pretrain.generation.sampling import Sampling


def infill(reader: Reader, vocab: Vocab, prompt: str, sampling: Sampling) -> str:
    """Returns the text of a prompt with its gaps filled in. Behind the last fixed token, it may end early.

    Raises:
        ValueError: as `gapped_prompt`, and when the model fills in no gaps.
    """
    ids = gapped_prompt(vocab, prompt, reader.context_length)
    (answer,) = reader.generate([Request(ids, 1, Stops(vocab).within(sampling))])
    return vocab.decode(filled(ids, answer.ids, vocab.mask_id))


def filled(ids: Sequence[int], new: Sequence[int], mask_id: int | None) -> list[int]:
    """Returns a prompt's ids with `new` ones for its masks; masks beyond these are left out, with all after them."""
    left = list(new)
    whole: list[int] = []
    for token in ids:
        if token == mask_id and not left:
            break
        whole.append(left.pop(0) if token == mask_id else token)
    return whole

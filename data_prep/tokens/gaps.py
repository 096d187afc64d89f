r"""Reads prompts with gaps: `It was a<|mask|>*12 night` has one of 12 tokens, which a masked model fills in.

`<|mask|>` is a gap of one token, `<|mask|>*n` one of n. With a backslash before it, `\<|mask|>` is the characters
themselves; two backslashes before it are one that stands before a gap. All other text is text alone.
"""

from __future__ import annotations

import re

from configs.schema.chat import MASK
from data_prep.tokens.vocab import Vocab

_GAP = re.compile(rf"(\\*){re.escape(MASK)}(?:\*([0-9]+))?")
_LONGEST_NUMBER = 9


def has_gaps(text: str) -> bool:
    """Tells whether a prompt has a gap."""
    return any(len(found[1]) % 2 == 0 for found in _GAP.finditer(text))


def without_escapes(text: str) -> str:
    """Returns the text that a prompt without gaps stands for."""
    return "".join(piece for piece in _pieces(text) if isinstance(piece, str))


def gapped_prompt(vocab: Vocab, text: str, most: int) -> list[int]:
    """Returns the token ids of a prompt, with the mask in its gaps.

    A prompt that begins with a gap has the begin token before it. A text between gaps is encoded by itself.

    Args:
        vocab: of the model.
        text: the prompt.
        most: tokens that fit.

    Raises:
        ValueError: when the vocabulary has no mask, a gap is empty, or the prompt does not fit.
    """
    if not has_gaps(text):
        return vocab.prompt(without_escapes(text))
    if vocab.mask_id is None:
        raise ValueError(no_gaps("the model's vocabulary has no such token"))
    ids: list[int] = []
    for piece in _pieces(text):
        if isinstance(piece, str):
            ids += vocab.encode_inside(piece) if ids else vocab.prompt(piece)
        else:
            if piece >= most:
                raise ValueError(f"a gap of {piece:,} tokens does not fit the model's context of {most:,}; shorten it")
            ids = [*(ids or [vocab.begin_id]), *[vocab.mask_id] * piece]
    if len(ids) > most:
        raise ValueError(f"a prompt of {len(ids):,} tokens, gaps included, does not fit the context of {most:,}")
    return ids


def no_gaps(why: str, instead: str | None = None) -> str:
    """Returns the error for a prompt with gaps that no model fills in; `instead`: a run whose model does."""
    model = instead or "a model that was trained with `train.objective: {kind: masked_diffusion}`"
    return rf"the prompt has a gap, {MASK}, but {why}; give {model}, or write \{MASK} for the characters"


def check_gaps(text: str, most: int, why_none: str | None = None) -> None:
    """Refuses what is known of a prompt's gaps before there is a vocabulary.

    Args:
        text: the prompt.
        most: tokens that fit.
        why_none: why the model fills in no gaps; None: it does.

    Raises:
        ValueError: when a gap is empty or does not fit, and for any gap where `why_none` is given.
    """
    if why_none is not None and has_gaps(text):
        raise ValueError(no_gaps(why_none))
    for piece in _pieces(text):
        if not isinstance(piece, str) and piece >= most:
            raise ValueError(f"a gap of {piece:,} tokens does not fit the model's context of {most:,}; shorten it")


def _pieces(text: str) -> list[str | int]:
    """Texts, never empty, and sizes of gaps, in order.

    Raises:
        ValueError: for a gap of no tokens, or of more than a number can tell.
    """
    pieces: list[str | int] = []
    plain, end = "", 0
    for found in _GAP.finditer(text):
        slashes, size = found[1], found[2]
        plain += text[end : found.start()] + slashes[: len(slashes) // 2]
        end = found.end()
        if len(slashes) % 2:
            plain += found[0][len(slashes) :]
            continue
        if size is not None and not size.strip("0"):
            raise ValueError(f"{MASK}*{size[:20]} is no gap: give 1 or more tokens, such as {MASK}*12")
        if size is not None and len(size.lstrip("0")) > _LONGEST_NUMBER:
            raise ValueError(f"a gap of {size[:20]} tokens does not fit any model's context; shorten it")
        if plain:
            pieces.append(plain)
        pieces.append(int(size or 1))
        plain = ""
    plain += text[end:]
    return [*pieces, plain] if plain else pieces

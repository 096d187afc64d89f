"""Defines what a reward sees: a prompt and the answer to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Completion:
    """An answer to a prompt.

    Attributes:
        text: what the assistant wrote, without markers of the template.
        reference: the prompt's right answer; None where it has none.
        prompt_ids: tokens of the prompt, with the marker of the assistant's turn at the end.
        ids: tokens of the answer, with its end where it has one.
        finished: False for an answer that was cut at its longest length, before its end.
    """

    text: str
    reference: str | None
    prompt_ids: Sequence[int]
    ids: Sequence[int]
    finished: bool = True

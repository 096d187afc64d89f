"""Turns the tokens of an answer into pieces of text: without tool calls, half characters and stop strings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data_prep.tokens.chat_template import ChatTemplate
from data_prep.tokens.vocab import Vocab
from launch.models.text_stream import StopStrings, TextStream

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class ScoredToken:
    """A token of the text with its log-probability, and those of the most likely tokens in its place.

    Both are of the model's distribution at temperature 1, whatever the token was drawn with; None: not asked for.
    """

    id: int
    log_prob: float | None = None
    top: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(cls, event: Any) -> ScoredToken:
        """The token of an event of `pretrain.generation.player.Player`."""
        return cls(event.token, event.raw_log_prob, event.top)


@dataclass(frozen=True)
class Piece:
    """What one step added to an answer.

    Attributes:
        sample: number of the answer among those to one prompt.
        text: new text, perhaps none.
        tokens: the tokens that the text is of.
        generated: tokens that the model generated for it, those that no text shows among them.
        finish: why the answer is over; None: it goes on.
    """

    sample: int
    text: str
    tokens: tuple[ScoredToken, ...]
    generated: int
    finish: Finish | None


class AnswerText:
    """The text of one answer, token by token."""

    def __init__(
        self,
        vocab: Vocab,
        template: ChatTemplate | None = None,
        stops: Iterable[str] = (),
        sample: int = 0,
        context: Sequence[int] = (),
    ) -> None:
        """`context`: ids of a text that is continued; an answer begins a text of its own."""
        self._text, self._stops, self._sample = TextStream(vocab, context), StopStrings(stops), sample
        self._opens = {template.call, template.result} if template else set()
        self._closes = {template.call_end, template.result_end} if template else set()
        self._of_tool = False
        self._read = 0  # characters that the tokens so far stand for
        self._given = 0
        self._held: list[tuple[int, ScoredToken]] = []  # where the text of each begins

    def push(self, token: ScoredToken, finish: Finish | None) -> Piece:
        """Adds a token; returns the text that it makes certain. The last token may be one that ends answers."""
        new = self._shown(token)
        if finish is not None:
            new += self._text.end()
        self._read += len(new)
        text = self._stops.push(new)
        if finish is not None:
            text += self._stops.end()
        if self._stops.met:
            finish = "stop"
        self._given += len(text)
        return Piece(self._sample, text, self._release(finish), 1, finish)

    def _shown(self, token: ScoredToken) -> str:
        if token.id in self._opens:
            self._of_tool = True
        if self._of_tool:
            self._of_tool = token.id not in self._closes
            return ""
        self._held.append((self._read, token))
        return self._text.push(token.id)

    def _release(self, finish: Finish | None) -> tuple[ScoredToken, ...]:
        """Tokens whose text has been given, at least in part."""
        everything = finish is not None and not self._stops.met
        ready = [token for start, token in self._held if everything or start < self._given]
        self._held = [] if finish is not None else [entry for entry in self._held if entry[0] >= self._given]
        return tuple(ready)


def joined(pieces: Sequence[Piece]) -> Piece:
    """The pieces of one answer as one."""
    return Piece(
        pieces[0].sample,
        "".join(piece.text for piece in pieces),
        tuple(token for piece in pieces for token in piece.tokens),
        sum(piece.generated for piece in pieces),
        pieces[-1].finish,
    )

"""Turns the tokens of an answer into pieces of text: without tool calls, half characters and stop strings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data_prep.chat.messages import Message, MessagePart, PartKind
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
        parts: with the last piece of an answer that used a tool: all of the answer, with calls and results.
    """

    sample: int
    text: str
    tokens: tuple[ScoredToken, ...]
    generated: int
    finish: Finish | None
    parts: tuple[MessagePart, ...] = ()


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
        self._opens: dict[int, PartKind] = {template.call: "call", template.result: "result"} if template else {}
        self._closes = {template.call_end, template.result_end} if template else set()
        self._vocab = vocab
        self._tool: tuple[PartKind, list[int]] | None = None  # a call or a result that is being written
        self._of_tools: list[tuple[int, MessagePart]] = []  # each with the characters before it
        self._said: list[str] = []
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
        self._said.append(text)
        return Piece(self._sample, text, self._release(finish), 1, finish, self._parts() if finish else ())

    def _shown(self, token: ScoredToken) -> str:
        if token.id in self._opens or self._tool is not None:
            self._of_a_tool(token.id)
            return ""
        self._held.append((self._read, token))
        return self._text.push(token.id)

    def _of_a_tool(self, token: int) -> None:
        if token in self._opens or token in self._closes:
            self._end_tool()
        if token in self._opens:
            self._tool = self._opens[token], []
        elif self._tool is not None:
            self._tool[1].append(token)

    def _end_tool(self) -> None:
        if self._tool is not None:
            kind, ids = self._tool
            self._of_tools.append((self._read, MessagePart(kind, self._vocab.decode(ids))))
            self._tool = None

    def _parts(self) -> tuple[MessagePart, ...]:
        """The answer with its calls and results where they stand; nothing for one without any."""
        self._end_tool()
        text, parts, begin = "".join(self._said), [], 0
        for place, part in self._of_tools:
            if place <= len(text):  # else a stop string stands before it
                parts += [MessagePart("text", text[begin:place]), part]
                begin = place
        return Message("assistant", (*parts, MessagePart("text", text[begin:]))).parts if parts else ()

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
        pieces[-1].parts,
    )

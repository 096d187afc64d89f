"""Encodes conversations, preference pairs and prompts for shards: ids, and the kind of each token.

What does not fit into the context is shortened by whole turns from its front, or refused; nothing is ever cut inside of
a message, so every answer in the shards has its end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from configs.schema.chat import Unit
from data_prep.chat.messages import AnyUnit, Conversation, Message, Pair, Prompt, unit_from_json
from data_prep.chat.shapes import with_system
from data_prep.documents.document import UNIT
from data_prep.tokens.chat_template import ChatTemplate, Kind, Rendered
from data_prep.tokens.vocab import Vocab

TOO_LONG = "longer_than_context"
EARLIER_TURNS = "earlier_turns"
NOTHING_TO_LEARN = "nothing_to_learn"
_LEARNT = {int(kind) for kind in (Kind.ANSWER, Kind.END, Kind.CALL)}


class Row(NamedTuple):
    """What lies beside a unit's document in the sidecar."""

    reference: str | None = None  # of a prompt: what a right answer ends with
    metadata: str | None = None  # of a prompt, as JSON
    margin: float | None = None  # of a pair: how much better the chosen answer is


@dataclass(frozen=True, slots=True)
class Encoded:
    """One document of the shards: ids without the first `bos`, with the end-of-document id; kinds; content.

    `contents` are the texts that the ids stand for, without markers.
    """

    rendered: Rendered
    contents: tuple[str, ...]
    row: Row


class Refused(Exception):
    """A unit that does not go into the shards; carries the reason."""


class UnitEncoder:
    """Encodes the units of one kind.

    Args:
        vocab: with the tokens of a chat template.
        unit: which kind.
        room: tokens of the longest document, with its end.
        system: text of a system message for units that have none; the steps before have not seen it, so that language
            and duplicates are those of what was said.
        encode: text to ids.
    """

    def __init__(
        self,
        vocab: Vocab,
        unit: Unit,
        room: int,
        system: str | None = None,
        encode: Callable[[str], list[int]] | None = None,
    ) -> None:
        self.template = ChatTemplate(vocab, encode)
        self._unit, self._room, self._system = unit, room, system

    def __call__(self, unit: AnyUnit) -> tuple[list[Encoded], AnyUnit]:
        """The documents of a unit (a pair has two: chosen, rejected), and the unit as they hold it.

        Raises:
            Refused: it is longer than the context, or says nothing that could be learnt.
        """
        if isinstance(unit, Prompt):
            return [self._prompt(unit)], unit
        if isinstance(unit, Pair):
            row = Row(margin=unit.margin)
            return [self._document((*unit.prompt, answer), row) for answer in (unit.chosen, unit.rejected)], unit
        messages = self._shortened(unit.messages)
        return [self._document(messages, Row())], Conversation(messages)

    def _begun(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        return with_system(messages, self._system)

    def _document(self, messages: tuple[Message, ...], row: Row) -> Encoded:
        messages = self._begun(messages)
        rendered = self.template.render(messages)
        if len(rendered.ids) > self._room:
            raise Refused(TOO_LONG)
        if _LEARNT.isdisjoint(rendered.kinds):
            raise Refused(NOTHING_TO_LEARN)
        return self._stored(rendered, messages, row)

    def _prompt(self, prompt: Prompt) -> Encoded:
        messages = self._begun(prompt.messages)
        ids = self.template.prompt(messages)
        if len(ids) > self._room:
            raise Refused(TOO_LONG)
        metadata = json.dumps(prompt.metadata, sort_keys=True) if prompt.metadata else None
        rendered = Rendered(ids, [int(Kind.GIVEN)] * len(ids))
        return self._stored(rendered, messages, Row(prompt.reference, metadata))

    def _stored(self, rendered: Rendered, messages: tuple[Message, ...], row: Row) -> Encoded:
        # The end of the document before is the first token that this one is conditioned on.
        ids = [*rendered.ids[1:], self.template.bos]
        kinds = [*rendered.kinds[1:], int(Kind.GIVEN)]
        contents = tuple(part.text for message in messages for part in message.parts)
        return Encoded(Rendered(ids, kinds), contents, row)

    def _shortened(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The messages without as many of the first questions and answers as it takes to fit; a system message stays.

        Raises:
            Refused: the last question and answer do not fit.
        """
        first = 1 if messages[0].role == "system" else 0
        lengths = [len(self.template.render([message]).ids) - 1 for message in messages]
        total, start = len(self.template.render(self._begun(messages)).ids), first
        while total > self._room and len(messages) - start > 2:
            total -= sum(lengths[start : start + 2])
            start += 2
        if total > self._room:
            raise Refused(TOO_LONG)
        return (*messages[:first], *messages[start:])


def unit_of_row(unit: Unit, metadata: str) -> AnyUnit:
    """The unit of a document's metadata, as stage `documents` wrote it."""
    return unit_from_json(unit, json.loads(metadata)[UNIT])

"""Defines what a stage after the base learns from: conversations, preference pairs, and prompts with a reference.

The structure of these is checked where they are made from a record (`data_prep/chat/shapes.py`): here they only hold
what is said. Everything is immutable, compares by value, and goes to JSON and back without loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from configs.schema.chat import CALL, CALL_END, RESULT, RESULT_END, ROLES, Unit

PartKind = Literal["text", "call", "result"]
_MARKS = {"text": ("", ""), "call": (CALL, CALL_END), "result": (RESULT, RESULT_END)}


class Unusable(ValueError):
    """A record that is no conversation, pair or prompt; `reason` is counted, `detail` shown beside an example."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class MessagePart:
    """A stretch of a message: text, a tool call, or what the tool answered."""

    kind: PartKind
    text: str


@dataclass(frozen=True, slots=True)
class Message:
    """What one side says: a role and its parts. Texts that follow one another are one part, empty ones none.

    Raises:
        Unusable: `unknown_role`; `tool_part_outside_answer` for a call or a result that the assistant did not make.
    """

    role: str
    parts: tuple[MessagePart, ...]

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise Unusable("unknown_role", repr(self.role)[:80])
        joined: list[MessagePart] = []
        for part in self.parts:
            if part.kind not in _MARKS:
                raise Unusable("unknown_part", repr(part.kind)[:80])
            if part.kind != "text":
                if self.role != "assistant":
                    raise Unusable("tool_part_outside_answer", self.role)
                joined.append(part)
            elif joined and joined[-1].kind == "text":
                joined[-1] = MessagePart("text", joined[-1].text + part.text)
            elif part.text:
                joined.append(part)
        object.__setattr__(self, "parts", tuple(joined))

    @classmethod
    def of(cls, role: str, text: str) -> Message:
        """A message that is text alone."""
        return cls(role, (MessagePart("text", text),))

    @property
    def text(self) -> str:
        """All that is said, tool calls and results between their markers: for people, rewards and scores to read."""
        return "".join(f"{_MARKS[part.kind][0]}{part.text}{_MARKS[part.kind][1]}" for part in self.parts)

    @property
    def content_bytes(self) -> int:
        """UTF-8 bytes of all parts, without the markers of tools."""
        return sum(len(part.text.encode()) for part in self.parts)

    def mapped(self, change: Callable[[str], str]) -> Message:
        """The message with its texts changed; blanks beside a tool's part, and what such a part says, stay."""
        last = len(self.parts) - 1
        parts = [
            MessagePart("text", _inside(part.text, change, number > 0, number < last)) if part.kind == "text" else part
            for number, part in enumerate(self.parts)
        ]
        return Message(self.role, tuple(parts))

    def to_json(self) -> dict[str, Any]:
        """`{role, content}`, where the content is a string, or a list of `{type, text}` when it has tool parts."""
        if all(part.kind == "text" for part in self.parts):
            return {"role": self.role, "content": self.text}
        return {"role": self.role, "content": [{"type": part.kind, "text": part.text} for part in self.parts]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Message:
        """The message of `to_json`; raises `Unusable` for anything else."""
        role, content = value.get("role"), value.get("content")
        if not isinstance(role, str):
            raise Unusable("unknown_role", repr(role)[:80])
        for name in ("tool_calls", "function_call"):
            if value.get(name):  # what an answer does must not be lost
                raise Unusable("unread_tool_call", name)
        if isinstance(content, str):
            return cls.of(role, content)
        if not isinstance(content, list):
            raise Unusable("missing_content", f"content is {type(content).__name__}")
        return cls(role, tuple(map(_part, content)))


def _inside(text: str, change: Callable[[str], str], keep_head: bool, keep_tail: bool) -> str:
    """The text changed, but for the blanks at the ends that are to be kept."""
    start = len(text) - len(text.lstrip()) if keep_head else 0
    end = len(text.rstrip()) if keep_tail else len(text)
    return text if start > end else text[:start] + change(text[start:end]) + text[end:]


def _part(value: Any) -> MessagePart:
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise Unusable("missing_content", f"a part is {repr(value)[:80]}")
    return MessagePart(cast(PartKind, value.get("type")), value["text"])


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order."""

    messages: tuple[Message, ...]

    @property
    def text(self) -> str:
        """All messages, joined by empty lines: what the steps for documents look at."""
        return text_of(self.messages)

    def mapped(self, change: Callable[[str], str]) -> Conversation:
        """The conversation with the texts of its messages changed."""
        return Conversation(_mapped(self.messages, change))

    def to_json(self) -> dict[str, Any]:
        """`{messages}`."""
        return {"messages": messages_to_json(self.messages)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Conversation:
        """The conversation of `to_json`."""
        return cls(messages_from_json(value["messages"]))


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt, of which people (or a model) preferred the first."""

    prompt: tuple[Message, ...]
    chosen: Message
    rejected: Message
    margin: float = 0.0

    @property
    def text(self) -> str:
        """The prompt and both answers, joined by empty lines."""
        return text_of((*self.prompt, self.chosen, self.rejected))

    def mapped(self, change: Callable[[str], str]) -> Pair:
        """The pair with the texts of its messages changed."""
        chosen, rejected = self.chosen.mapped(change), self.rejected.mapped(change)
        return Pair(_mapped(self.prompt, change), chosen, rejected, self.margin)

    def to_json(self) -> dict[str, Any]:
        """`{prompt, chosen, rejected, margin}`."""
        return {
            "prompt": messages_to_json(self.prompt),
            "chosen": self.chosen.to_json(),
            "rejected": self.rejected.to_json(),
            "margin": self.margin,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Pair:
        """The pair of `to_json`."""
        chosen, rejected = Message.from_json(value["chosen"]), Message.from_json(value["rejected"])
        return cls(messages_from_json(value["prompt"]), chosen, rejected, float(value.get("margin", 0.0)))


@dataclass(frozen=True, slots=True)
class Prompt:
    """Messages that want an answer, what a right answer ends with, and what else the record says."""

    messages: tuple[Message, ...]
    reference: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The messages, joined by empty lines. The reference is not among them."""
        return text_of(self.messages)

    def mapped(self, change: Callable[[str], str]) -> Prompt:
        """The prompt with the texts of its messages changed."""
        return Prompt(_mapped(self.messages, change), self.reference, self.metadata)

    def to_json(self) -> dict[str, Any]:
        """`{messages, reference, metadata}`."""
        return {
            "messages": messages_to_json(self.messages),
            "reference": self.reference,
            "metadata": dict(self.metadata),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Prompt:
        """The prompt of `to_json`."""
        return cls(messages_from_json(value["messages"]), value.get("reference"), value.get("metadata") or {})


AnyUnit = Conversation | Pair | Prompt
_UNITS: dict[Unit, type[AnyUnit]] = {"conversation": Conversation, "pair": Pair, "prompt": Prompt}


def unit_from_json(unit: Unit, value: dict[str, Any]) -> AnyUnit:
    """The unit of its `to_json`."""
    return _UNITS[unit].from_json(value)


def _mapped(messages: tuple[Message, ...], change: Callable[[str], str]) -> tuple[Message, ...]:
    return tuple(message.mapped(change) for message in messages)


def text_of(messages: Iterable[Message]) -> str:
    """The messages' text, joined by empty lines; those without text are left out."""
    return "\n\n".join(text for message in messages if (text := message.text))


def messages_to_json(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """A list of `{role, content}`, as chat interfaces exchange it."""
    return [message.to_json() for message in messages]


def messages_from_json(values: Sequence[dict[str, Any]]) -> tuple[Message, ...]:
    """The messages of `messages_to_json`; raises `Unusable` for anything else."""
    if not isinstance(values, list | tuple) or not all(isinstance(value, dict) for value in values):
        raise Unusable("missing_messages", f"not a list of messages: {repr(values)[:80]}")
    return tuple(map(Message.from_json, values))

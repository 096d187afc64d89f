"""Turns records of public data sets into conversations, pairs and prompts; says why one cannot be turned.

A record has a *shape* (how it is written down), and the objective wants a *unit* (what is read together). One shape may
serve several units: a question of GSM8K is a conversation for fine-tuning and a prompt with a reference for
reinforcement learning; the chosen side of a pair is a conversation.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from configs.schema.chat import SERVES, Shape, Unit
from data_prep.chat.messages import (
    AnyUnit,
    Conversation,
    Message,
    MessagePart,
    Pair,
    Prompt,
    Unusable,
    messages_from_json,
)
from data_prep.chat.tool_messages import with_tools_inside

Messages = tuple[Message, ...]
_SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bard": "assistant", "bing": "assistant", "model": "assistant", "system": "system",
}  # fmt: skip
_TURN = re.compile(r"\n\n(Human|Assistant): ?")
_CALCULATION = re.compile(r"<<([^<>=]*)=([^<>]*)>>")
_RESULT_MARK = "####"
_NO_ANSWER = " \t\r\n*_`.!;"  # what `pretrain.rewards.answers` takes off both sides, or off the end


@dataclass(frozen=True, slots=True)
class Wanted:
    """What records are to become."""

    unit: Unit = "document"
    calls: bool = True  # calculations become calls of the calculator; else the text around them stays alone
    reference: bool = False  # a prompt must say what a right answer is, because answers are compared with it

    def of(self, record: dict[str, Any], shape: Shape) -> AnyUnit:
        """Makes the unit; raises as `to_unit` does, and `Unusable` `no_reference`."""
        unit = to_unit(record, shape, self.unit, None)
        if self.reference and isinstance(unit, Prompt):
            right = (unit.reference or "").rpartition(_RESULT_MARK)[2]
            if not right.strip(_NO_ANSWER):
                raise Unusable("no_reference", repr(unit.reference)[:80])
        # A model that was taught to call a tool, and has none, would wait for results that do not come.
        return unit if self.calls else without_tools(unit)


DOCUMENTS = Wanted()


def to_unit(record: dict[str, Any], shape: Shape, unit: Unit, system: str | None) -> AnyUnit:
    """Makes what the objective reads out of a record.

    Args:
        record: as its file has it; fields that the shape does not know become a prompt's metadata.
        shape: how the record is written down.
        unit: what is wanted.
        system: text of a system message for records that have none; None: no message.

    Raises:
        Unusable: the record cannot become such a unit, with the reason to count.
        ValueError: the shape never serves the unit.
    """
    if unit not in SERVES[shape] or unit == "document":
        raise ValueError(f"records of shape {shape} serve for {', '.join(SERVES[shape])}, not for {unit}")
    if shape in ("hh", "pairs"):
        return _preference(record, shape, unit, system)
    messages, reference, used = _READERS[shape](record)
    messages = with_system(messages, system)
    if unit == "conversation":
        return Conversation(checked(messages))
    if messages and messages[-1].role == "assistant":
        reference = messages[-1].text if reference is None else reference
        messages = messages[:-1]
    return Prompt(_asked(messages), reference, _rest(record, used))


def _preference(record: dict[str, Any], shape: Shape, unit: Unit, system: str | None) -> AnyUnit:
    prompt, chosen, rejected = (_transcripts if shape == "hh" else _named_answers)(record)
    prompt = _asked(with_system(prompt, system))
    if unit == "prompt":
        used = ("chosen", "rejected", "prompt", "conversations", "messages", "margin")
        return Prompt(prompt, None, _rest(record, used))
    if unit == "conversation":
        return Conversation(checked((*prompt, chosen)))
    _compared(prompt, chosen, rejected)
    return Pair(prompt, chosen, rejected, _margin(record.get("margin")))


def without_tools(unit: AnyUnit) -> AnyUnit:
    """The unit with the text of its answers alone; raises `Unusable` where one has none left."""

    def plain(message: Message) -> Message:
        if all(part.kind == "text" for part in message.parts):
            return message
        return Message(message.role, tuple(part for part in message.parts if part.kind == "text"))

    if isinstance(unit, Pair):
        made: AnyUnit = Pair(tuple(map(plain, unit.prompt)), plain(unit.chosen), plain(unit.rejected), unit.margin)
    elif isinstance(unit, Prompt):
        made = Prompt(tuple(map(plain, unit.messages)), unit.reference, unit.metadata)
    else:
        made = Conversation(tuple(map(plain, unit.messages)))
    if made != unit:
        still_usable(made)
    return made


# -------------------------------------------------------------------------------------------------------------- checks
def still_usable(unit: AnyUnit) -> None:
    """Looks at a unit whose texts were changed; raises `Unusable` as `to_unit` does."""
    if isinstance(unit, Conversation):
        checked(unit.messages)
    elif isinstance(unit, Prompt):
        _asked(unit.messages)
    else:
        _compared(unit.prompt, unit.chosen, unit.rejected)


def _compared(prompt: Messages, chosen: Message, rejected: Message) -> None:
    for answer in (chosen, rejected):
        checked((*prompt, answer))
    if chosen == rejected:
        raise Unusable("same_answers", chosen.text[:80])


def checked(messages: Messages) -> Messages:
    """The messages, if they alternate (a system message may come first) and end with an answer that says something.

    Raises:
        Unusable: `no_assistant_message`, `roles_do_not_alternate`, `ends_without_answer`, `empty_question`,
            `empty_answer`.
    """
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not any(message.role == "assistant" for message in turns):
        raise Unusable("no_assistant_message", f"{len(messages)} messages")
    _alternate(turns)
    if turns[-1].role != "assistant":
        raise Unusable("ends_without_answer", turns[-1].text[:80])
    return messages


def _asked(messages: Messages) -> Messages:
    """The messages, if they alternate and end with a question."""
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns:
        raise Unusable("no_question", f"{len(messages)} messages")
    _alternate(turns)
    if turns[-1].role != "user":
        raise Unusable("no_question", "the last message is an answer")
    return messages


def _alternate(turns: Messages) -> None:
    expected = ("user", "assistant")
    for number, message in enumerate(turns):
        if message.role != expected[number % 2]:
            raise Unusable("roles_do_not_alternate", " ".join(turn.role for turn in turns)[:80])
        if not any(part.text.strip() for part in message.parts):
            raise Unusable("empty_question" if message.role == "user" else "empty_answer", f"message {number + 1}")


def with_system(messages: Messages, system: str | None) -> Messages:
    """The messages with a system message of this text before them, unless they have one or there is no text."""
    if system is None or (messages and messages[0].role == "system"):
        return messages
    return (Message.of("system", system), *messages)


# -------------------------------------------------------------------------------------------------------------- shapes
def _rest(record: dict[str, Any], used: tuple[str, ...]) -> dict[str, Any]:
    """The other fields of a record, as JSON can hold them; those that it cannot hold are left out."""
    rest: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(key, str) and key not in used:
            with suppress(TypeError, ValueError, RecursionError):
                rest[key] = json.loads(json.dumps(value, default=str))
    return rest


def _text(record: dict[str, Any], *names: str) -> str:
    """The first of these fields that is a string."""
    for name in names:
        if isinstance(value := record.get(name), str):
            return value
    raise Unusable("missing_field", f"no text in {names[0]}; fields: {', '.join(map(str, record))}"[:200])


def _openai(record: dict[str, Any]) -> tuple[Messages, str | None, tuple[str, ...]]:
    if "messages" not in record:
        raise Unusable("missing_field", f"no messages; fields: {', '.join(map(str, record))}"[:200])
    reference = record.get("reference")
    reference = None if reference is None else str(reference)
    messages = record["messages"]
    if isinstance(messages, list):
        messages = with_tools_inside(messages)
    return messages_from_json(messages), reference, ("messages", "reference")


def _sharegpt(record: dict[str, Any]) -> tuple[Messages, str | None, tuple[str, ...]]:
    return _spoken(record.get("conversations")), None, ("conversations",)


def _spoken(turns: Any) -> Messages:
    """Messages of a list of `{from, value}`."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Unusable("missing_field", "`conversations` is no list of turns")
    return tuple(map(_turn, turns))


def _turn(turn: Any) -> Message:
    speaker = str(turn.get("from")).lower()
    if speaker not in _SPEAKERS:
        raise Unusable("unknown_role", speaker[:80])
    return Message.of(_SPEAKERS[speaker], _text(turn, "value"))


def _alpaca(record: dict[str, Any]) -> tuple[Messages, str | None, tuple[str, ...]]:
    question, more = _text(record, "instruction"), record.get("input")
    if isinstance(more, str) and more.strip():
        question = f"{question}\n\n{more}"
    messages = (Message.of("user", question), Message.of("assistant", _text(record, "output")))
    return messages, None, ("instruction", "input", "output")


def _gsm8k(record: dict[str, Any]) -> tuple[Messages, str | None, tuple[str, ...]]:
    """Calculations `<<12*4=48>>48` become a call of the calculator and its result; the text after them stays."""
    question, answer = _text(record, "question"), _text(record, "answer")
    _, mark, reference = answer.rpartition(_RESULT_MARK)
    messages = (Message.of("user", question), Message("assistant", calculator_parts(answer)))
    return messages, reference.strip() if mark else None, ("question", "answer")


def calculator_parts(answer: str) -> tuple[MessagePart, ...]:
    """The parts of an answer that writes its calculations as GSM8K does: `12*4 = <<12*4=48>>48 apples`.

    The digits after `>>` repeat the result; they are left to the text, as the model would write them.
    """
    parts, position = [], 0
    for found in _CALCULATION.finditer(answer):
        parts += [
            MessagePart("text", answer[position : found.start()]),
            MessagePart("call", found[1]),
            MessagePart("result", found[2]),
        ]
        position = found.end()
    return (*parts, MessagePart("text", answer[position:]))


def _transcripts(record: dict[str, Any]) -> tuple[Messages, Message, Message]:
    r"""Prompt and both answers of transcripts: `\n\nHuman: …\n\nAssistant: …`."""
    chosen, rejected = (_transcript(_text(record, name)) for name in ("chosen", "rejected"))
    return _common_prompt(chosen, rejected)


def _transcript(text: str) -> Messages:
    before, *turns = _TURN.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if before.strip() or not turns:
        raise Unusable("roles_do_not_alternate", f"text before the first turn: {before.strip()[:60]}")
    names = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message.of(names[name], said.strip()) for name, said in zip(turns[::2], turns[1::2], strict=True))


def _common_prompt(chosen: Messages, rejected: Messages) -> tuple[Messages, Message, Message]:
    for answered in (chosen, rejected):
        if not answered or answered[-1].role != "assistant":
            raise Unusable("ends_without_answer" if answered else "no_assistant_message")
    if chosen[:-1] != rejected[:-1]:
        raise Unusable("prompts_differ", f"{len(chosen)} and {len(rejected)} messages")
    return chosen[:-1], chosen[-1], rejected[-1]


def _named_answers(record: dict[str, Any]) -> tuple[Messages, Message, Message]:
    """`prompt`, `chosen`, `rejected`: texts, messages, lists of messages, or whole conversations without `prompt`."""
    for name in ("chosen", "rejected"):
        if name not in record:
            raise Unusable("missing_field", f"no {name}; fields: {', '.join(map(str, record))}"[:200])
    chosen, rejected = (_said(record[name], "assistant") for name in ("chosen", "rejected"))
    asked = next((record[name] for name in ("prompt", "messages", "conversations") if record.get(name)), None)
    if asked is not None and isinstance(record["chosen"], list) and len(chosen) > 1:
        asked = None  # both sides repeat the prompt
    prompt = () if asked is None else _said(asked, "user")
    return _common_prompt((*prompt, *chosen), (*prompt, *rejected))


def _said(value: Any, role: str) -> Messages:
    """Messages of a text, a message in either way of writing, or a list of these."""
    if isinstance(value, str):
        return (Message.of(role, value),)
    values = [value] if isinstance(value, dict) else value
    if not isinstance(values, list) or not all(isinstance(item, dict) for item in values):
        raise Unusable("missing_field", f"neither text nor messages: {repr(value)[:80]}")
    return tuple(_turn(item) if "from" in item else Message.from_json(item) for item in values)


def _margin(value: Any) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Unusable("bad_margin", repr(value)[:80])
    return float(value)


_READERS: dict[Shape, Callable[[dict[str, Any]], tuple[Messages, str | None, tuple[str, ...]]]] = {
    "openai": _openai,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "gsm8k": _gsm8k,
}
